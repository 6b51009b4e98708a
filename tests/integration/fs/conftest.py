"""Fixtures of the tests of hostd/fs that mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostd.fs import CAS, ImageStore
from tests.integration.fs.fs_host import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    cas = CAS(tmp_path / "data" / "cas")
    return Host(tmp_path / "data", run_dir, cas, ImageStore(cas, tmp_path / "data" / "images"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree: two files with blobs, a small one, a link."""
    top = tmp_path / "source"
    (top / "dir").mkdir(parents=True)
    (top / "big").write_bytes(os.urandom(200_000))
    (top / "dir" / "other").write_bytes(os.urandom(5_000))
    (top / "dir" / "small").write_bytes(b"inline")
    (top / "link").symlink_to("dir/other")
    return top


@pytest.fixture(params=["erofs", "fuse"])
def mode(request: pytest.FixtureRequest) -> str:
    """Both ways of serving an image."""
    return str(request.param)
