"""``python -m hostd.cli``: the same as ``hostctl``."""

from __future__ import annotations

import sys

from hostd.cli import main

if __name__ == "__main__":
    sys.exit(main())
