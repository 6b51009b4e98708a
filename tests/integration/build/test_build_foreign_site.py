"""A site unlike this machine: own index, own mirror, own CA; nothing of it stays."""

import pytest

from hostd.build.base import DEFAULT_SOURCES
from hostd.build.resolution import Bases
from hostd.build.site import gather
from hostd.config import BuildConfig
from hostd.fs.tree import differences
from hostd.model import Env, From, Run
from tests.integration.build.workshop import open_workshop

pytestmark = pytest.mark.anyio
DEBIAN = From(image="debian_slim")


@pytest.fixture
async def foreign(tmp_path, monkeypatch):
    root = tmp_path / "host"
    index = tmp_path / "index" / "simple"
    for directory in (root / "etc/apt", root / "etc/ssl/certs", index, index.parent / "files"):
        directory.mkdir(parents=True)
    (index / "index.html").write_text("an index")
    (root / "etc/pip.conf").write_text(
        f"[global]\nindex-url = file://{index}\ncert = /etc/own.pem\n[install]\nuser = yes\n"
    )
    (root / "etc/ssl/certs/ca-certificates.crt").write_text("BEGIN OWN CA")
    (root / "etc/apt/sources.list").write_text(
        "deb [trusted=yes] http://mirror.invalid/debian bookworm main\n"
    )
    environ = {
        "PIP_EXTRA_INDEX_URL": "http://packages.invalid/simple",
        "PIP_TARGET": "/elsewhere",
        "https_proxy": "http://proxy.invalid:3128",
        "UV_INDEX_URL": "http://uv.invalid/simple",
        "SSL_CERT_FILE": "/etc/own.pem",
    }

    def read(self):
        return gather(
            BuildConfig(env={"EXTRA": "of the configuration"}),
            suite="bookworm",
            environ=environ,
            home=tmp_path / "home",
            root=root,
            apt_dump='Acquire::http::Proxy "http://proxy.invalid:3128";\n',
        )

    async with open_workshop(tmp_path / "data", BuildConfig()) as workshop:
        # The base image of this machine stands for the one that this site would have made.
        monkeypatch.setattr(Bases, "find_debian", lambda self: _ready(workshop.base))
        monkeypatch.setattr(Bases, "_read_site", read)
        yield workshop, index


async def _ready(image):
    return image


def mirrors(workshop, image):
    """The hosts that apt would have asked."""
    lines = workshop.read(image, "/got-sources").decode().splitlines()
    return {line.split("/")[2] for line in lines}


async def test_settings_reach_the_step_and_not_the_image(foreign):
    workshop, index = foreign
    command = f"""set -e
    cp $SSL_CERT_FILE /got-ca; cp $PIP_CONFIG_FILE /got-pip; env | sort > /got-env
    apt-config dump > /got-apt; cat {index}/index.html > /got-index
    apt-get update --print-uris > /got-sources
    """
    image = await workshop.build(
        DEBIAN, Env(variables={"UV_INDEX_URL": "mine"}), Run(command=command)
    )
    env = dict(
        line.split("=", 1) for line in workshop.read(image, "/got-env").decode().splitlines()
    )
    assert workshop.read(image, "/got-ca") == b"BEGIN OWN CA"
    assert b"cert = /run/hostd/site/ca.crt" in workshop.read(image, "/got-pip")
    assert b"user" not in workshop.read(image, "/got-pip")
    assert env["PIP_EXTRA_INDEX_URL"] == "http://packages.invalid/simple"
    assert env["https_proxy"] == "http://proxy.invalid:3128"
    assert env["EXTRA"] == "of the configuration"
    assert env["UV_INDEX_URL"] == "mine"
    assert "PIP_TARGET" not in env
    assert b'Acquire::http::Proxy "http://proxy.invalid:3128"' in workshop.read(image, "/got-apt")
    assert workshop.read(image, "/got-index") == b"an index"
    assert mirrors(workshop, image) == {"mirror.invalid"}
    config = workshop.images.manifest(image).config
    assert set(config.env) == {"PATH", "LANG", "PIP_BREAK_SYSTEM_PACKAGES", "UV_INDEX_URL"}
    assert workshop.read(image, "/etc/apt/sources.list") == DEFAULT_SOURCES
    top = "/" + str(index).split("/")[1]
    assert not workshop.has(image, str(index.parent))
    assert workshop.has(image, top) == workshop.has(workshop.base, top)


async def test_nothing_of_the_site_remains_when_a_step_keeps_nothing(foreign):
    workshop, _ = foreign
    image = await workshop.build(DEBIAN, Run(command="true"))
    trees = [workshop.images.tree(each) for each in (workshop.base, image)]
    assert differences(*trees) == []


async def test_own_sources_of_an_image_are_respected(foreign):
    workshop, _ = foreign
    image = await workshop.build(
        DEBIAN,
        Run(command="echo 'deb http://other.invalid/debian bookworm main' > /etc/apt/sources.list"),
        Run(command="apt-get update --print-uris > /got-sources"),
    )
    assert mirrors(workshop, image) == {"other.invalid"}
