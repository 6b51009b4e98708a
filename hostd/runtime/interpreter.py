"""Find the Python of an image: the first ``python3`` on its PATH, as a shell in it would."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from hostd.errors import ContainerStartError
from hostd.runtime import rootfs, syscalls
from hostd.runtime.bundle import DEFAULT_PATH

NAMES = ("python3", "python")
"""In this order: ``python`` alone is what some conda images have."""


def find_python(root: Path, env: Mapping[str, str]) -> str:
    """Its path in the container; blocking, since the image's file system may have to fetch.

    Links are followed inside the root only. Whether its version will do shows when it runs.

    Raises:
        ContainerStartError: there is none.
    """
    path = env.get("PATH") or DEFAULT_PATH
    with rootfs.opened(root) as root_fd:
        for name in NAMES:
            for directory in path.split(":"):
                candidate = os.path.join("/", directory, name)
                if _is_program(root_fd, candidate):
                    return candidate
    raise ContainerStartError(
        f"the image has no python3 on its PATH ({path})",
        hint="functions need Python 3.8 or later in their image: install it, or set PATH",
    )


def _is_program(root_fd: int, path: str) -> bool:
    try:
        descriptor = syscalls.open_in_root(root_fd, path, os.O_PATH)
    except OSError:
        return False
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    return stat.S_ISREG(mode) and bool(mode & 0o111)
