"""Images from recipes: Dockerfiles and the SDK's steps, run in containers and kept as layers.

``Builder`` is what the daemon uses; see DESIGN.md for how a build goes.
"""

from hostd.build.service import Build, Builder

__all__ = ["Build", "Builder"]
