"""Packages come through the site's settings, and no image has any of them."""

import os

import pytest

from hostd.build.base import DEFAULT_SOURCES
from hostd.model import From, Run
from tests.base_image import site_of_this_machine

pytestmark = pytest.mark.anyio
DEBIAN = From(image="debian_slim")
MARK = "hostd-site-mark"


def texts(workshop, image):
    """Every path, link and small or textual content of an image."""
    for path, node in workshop.images.tree(image).walk():
        data = node.inline or b""
        if node.digest is not None and node.size < 1 << 20:
            data = workshop.cas.read(node.digest)
        yield path, node.target + data


def assert_no_site(workshop, image):
    config = workshop.images.manifest(image).config
    assert set(config.env) == {"PATH", "LANG", "PIP_BREAK_SYSTEM_PACKAGES"}
    site = site_of_this_machine()
    marks = {MARK.encode(), b"/run/hostd", b"BEGIN OWN CA"}
    marks |= {os.fsencode(path) for path in site.directories}
    hosts = {source.uri.split("/")[2].encode() for source in site.sources if "//" in source.uri}
    marks |= hosts - {b"deb.debian.org"}
    for path, text in texts(workshop, image):
        for mark in marks:
            assert mark not in path + text, f"{mark!r} is in {path!r}"
    assert workshop.read(image, "/etc/apt/sources.list") == DEFAULT_SOURCES
    assert not workshop.has(image, "/run/hostd")


async def test_base_image_has_no_trace_of_its_making(workshop):
    assert_no_site(workshop, workshop.base)
    assert workshop.images.manifest(workshop.base).python == "3.11"
    assert workshop.read(workshop.base, "/etc/resolv.conf") == b""
    assert workshop.read(workshop.base, "/etc/hostname") == b"localhost\n"
    for path in ("/etc/apt/apt.conf.d/99mmdebstrap", "/etc/machine-id", "/dev/null"):
        assert not workshop.has(workshop.base, path)


async def test_pip_install_leaves_only_the_package(workshop):
    image = await workshop.build(DEBIAN, Run(command="pip install six"))
    assert_no_site(workshop, image)
    before = {path for path, _ in workshop.images.tree(workshop.base).walk()}
    new = {path for path, _ in workshop.images.tree(image).walk()} - before
    assert [path for path in new if not path.startswith(b"/usr/local/lib/python3.11/")] == []
    check = await workshop.build(
        DEBIAN, Run(command="pip install six"), Run(command="python -c 'import six' && touch /ok")
    )
    assert workshop.has(check, "/ok")


async def test_apt_install_leaves_no_lists_of_the_site(workshop):
    image = await workshop.build(
        DEBIAN,
        Run(command="apt-get update && apt-get install -y --no-install-recommends bc"
                    " && rm -rf /var/lib/apt/lists/*"),
        Run(command="test $(echo 6*7 | bc) = 42"),
    )  # fmt: skip
    assert_no_site(workshop, image)


async def test_step_sees_site_settings_but_the_image_wins(workshop, monkeypatch):
    image = await workshop.build(
        DEBIAN,
        Run(command="ls -d /run/hostd/site > /seen; env | cut -d= -f1 | sort >> /seen"),
    )
    seen = workshop.read(image, "/seen").decode().split()
    assert "/run/hostd/site" in seen
    assert "SSL_CERT_FILE" in seen
    assert not workshop.has(image, "/run/hostd")
