"""The Debian base image for tests: made once per machine, then given away as hard links.

It lies beside the daemon's shared data directory. Tests get their own copy; who damages a blob must
replace the file, not write into it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from blake3 import blake3

from hostd.build import base
from hostd.build.site import Site, gather
from hostd.config import BuildConfig
from hostd.fs import CAS, ImageStore, erofs
from hostd.ids import ImageId
from tests.daemon_process import CACHE


def site_of_this_machine() -> Site:
    """The settings that builds on this machine need to reach their packages."""
    return gather(BuildConfig(), suite=base.SUITE, environ=os.environ, home=Path.home())


def copy_base_image(data_dir: Path) -> tuple[str, ImageId]:
    """Fill a new data directory with the base image; its layer key and its id."""
    site = site_of_this_machine()
    key = base.recipe_key(site)
    kept = CACHE / f"base-{key[:16]}-{_code_version()}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept / "id").exists():
            for outdated in CACHE.glob("base-*"):
                shutil.rmtree(outdated)
            _make(site, kept)
        data_dir.mkdir(parents=True, exist_ok=True)
        for name in ("cas", "images"):
            subprocess.run(["cp", "-al", str(kept / name), str(data_dir / name)], check=True)
    return key, ImageId((kept / "id").read_text())


def _code_version() -> str:
    """Changes with the code that decides what the base image looks like on disk."""
    hasher = blake3()
    for module in (base, erofs):
        hasher.update(Path(module.__file__).read_bytes())
    return hasher.hexdigest()[:8]


def _make(site: Site, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    cas = CAS(kept / "cas")
    images = ImageStore(cas, kept / "images")
    tree = asyncio.run(
        base.make_tree(site, scratch=kept / "scratch", cas=cas, line=lambda text: None)
    )
    image = images.save(tree, base.CONFIG, python=base.PYTHON)
    cas.close()
    (kept / "id").write_text(image)
