"""hostd: a self-hosted serverless cloud for small labs."""

__version__ = "0.1.0"
