"""The site's settings: what is taken from the host, and in what form a step gets it."""

import stat

import pytest

from hostd.build import base
from hostd.build.site import SITE_DIR, gather, mounts, stage
from hostd.config import BuildConfig


@pytest.fixture
def host(tmp_path):
    """A host whose files are made by the test."""

    class Host:
        root = tmp_path / "root"
        home = tmp_path / "home"

        def write(self, path, text):
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            return file

        def site(self, config=None, environ=None, dump=""):
            return gather(
                config or BuildConfig(),
                suite="bookworm",
                environ=environ or {},
                home=self.home,
                root=self.root,
                apt_dump=dump,
            )

    return Host()


def test_bare_host_has_debians_public_archives(host):
    site = host.site()
    assert site.env == {}
    assert site.files == {}
    assert not site.has_own_mirror
    assert site.sources[0].suite == "bookworm"


def test_only_variables_about_packages_and_the_network_are_taken(host):
    environ = {
        "PIP_INDEX_URL": "i",
        "PIP_TARGET": "t",
        "PIP_USER": "1",
        "UV_INDEX_LAB_PASSWORD": "p",
        "UV_CACHE_DIR": "c",
        "HTTPS_PROXY": "x",
        "no_proxy": "y",
        "HOME": "/root",
        "LD_PRELOAD": "evil",
    }
    assert set(host.site(environ=environ).env) == {
        "PIP_INDEX_URL",
        "UV_INDEX_LAB_PASSWORD",
        "HTTPS_PROXY",
        "no_proxy",
    }


def test_configuration_adds_and_wins(host):
    config = BuildConfig(env={"PIP_INDEX_URL": "mine", "OTHER": "x"})
    site = host.site(config, environ={"PIP_INDEX_URL": "host"})
    assert site.env == {"PIP_INDEX_URL": "mine", "OTHER": "x"}


def test_nothing_of_the_host_without_inherit_site(host):
    host.write("etc/pip.conf", "[global]\nindex-url = x\n")
    config = BuildConfig(inherit_site=False, env={"A": "b"})
    site = host.site(config, environ={"PIP_INDEX_URL": "i"}, dump='Acquire::Retries "3";\n')
    assert (site.env, site.files) == ({"A": "b"}, {})


def test_certificates_become_one_bundle(host, tmp_path):
    host.write("etc/ssl/certs/ca-certificates.crt", "SYSTEM")
    own = tmp_path / "own.pem"
    own.write_text("OWN")
    site = host.site(environ={"REQUESTS_CA_BUNDLE": str(own), "GIT_SSL_CAINFO": str(own)})
    assert site.files["ca.crt"] == b"OWN\nSYSTEM"
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO"):
        assert site.env[name] == f"{SITE_DIR}/ca.crt"
    assert "AWS_CA_BUNDLE" not in site.env


def test_configured_bundle_stands_alone(host, tmp_path):
    host.write("etc/ssl/certs/ca-certificates.crt", "SYSTEM")
    own = tmp_path / "own.pem"
    own.write_text("OWN")
    assert host.site(BuildConfig(ca_bundle=str(own))).files["ca.crt"] == b"OWN"


def test_pip_files_are_merged_as_pip_does(host):
    host.write("etc/ssl/certs/ca-certificates.crt", "SYSTEM")
    host.write("etc/pip.conf", "[global]\nindex-url = a\ncert = /x.pem\n[install]\nuser = yes\n")
    user = host.home / ".config/pip/pip.conf"
    user.parent.mkdir(parents=True)
    user.write_text("[global]\nindex_url = ignored\nindex-url = b\nextra-index-url =\n  c\n  d\n")
    text = host.site().files["pip.conf"].decode()
    assert "index-url = b" in text
    assert f"cert = {SITE_DIR}/ca.crt" in text
    assert "extra-index-url = \n\tc\n\td" in text
    assert "user = yes" not in text
    assert host.site().env["PIP_CONFIG_FILE"] == f"{SITE_DIR}/pip.conf"


def test_broken_pip_file_is_left_out(host):
    host.write("etc/pip.conf", "no section\n")
    assert "pip.conf" not in host.site().files


def test_local_indexes_are_bound_with_what_they_link_to(host, tmp_path):
    simple = tmp_path / "index/simple"
    wheels = tmp_path / "my wheels"
    for path in (simple, simple.parent / "files", wheels, tmp_path / "index/other"):
        path.mkdir(parents=True)
    quoted = str(wheels).replace(" ", "%20")
    environ = {
        "PIP_EXTRA_INDEX_URL": f"https://x/simple file://{simple}",
        "UV_FIND_LINKS": f"file://{quoted},/absent/dir",
        "PIP_FIND_LINKS": "/ /etc",
    }
    site = host.site(environ=environ)
    assert set(site.directories) == {simple, simple.parent / "files", wheels}
    targets = {mount.target for mount in mounts(site, tmp_path)}
    assert targets == {str(path) for path in site.directories}
    assert all(mount.read_only for mount in mounts(site, tmp_path))


def test_own_mirror_stands_behind_apt_config(host):
    host.write("etc/apt/sources.list", "deb http://mirror.lab/debian bookworm main\n")
    host.write("etc/apt/trusted.gpg.d/lab.gpg", "RING")
    host.write("etc/apt/auth.conf.d/lab.conf", "machine mirror.lab password x")
    host.write("etc/ssl/certs/ca-certificates.crt", "SYSTEM")
    dump = (
        'Acquire::http::Proxy "http://p:3128";\nAcquire::https::mirror.lab::CaInfo "/ca.pem";\n'
        'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "0";\n'
        'Acquire::http::Proxy-Auto-Detect "/usr/bin/script";\nAcquire "";\n'
    )
    site = host.site(dump=dump)
    options = site.files["apt-options.conf"].decode()
    assert options == (
        'Acquire::http::Proxy "http://p:3128";\n'
        f'Acquire::https::mirror.lab::CaInfo "{SITE_DIR}/ca.crt";\n'
        'Acquire::Check-Valid-Until "false";\n'
        f'Dir::Etc::netrc "{SITE_DIR}/auth.conf";\n'
    )
    whole = site.files["apt.conf"].decode()
    assert whole == options + f'Dir::Etc::sourcelist "{SITE_DIR}/sources.list";\n'
    (ring,) = [name for name in site.files if name.startswith("keyrings/")]
    assert site.files["sources.list"].decode() == (
        f"deb [signed-by={SITE_DIR}/{ring}] http://mirror.lab/debian bookworm main\n"
    )
    assert site.step_env(has_default_sources=True)["APT_CONFIG"] == f"{SITE_DIR}/apt.conf"
    assert site.step_env(has_default_sources=False)["APT_CONFIG"] == f"{SITE_DIR}/apt-options.conf"


def test_mirror_setting_wins(host):
    host.write("etc/apt/sources.list", "deb http://mirror.lab/debian bookworm main\n")
    site = host.site(BuildConfig(mirror="http://other.lab/debian"))
    assert [source.uri for source in site.sources] == ["http://other.lab/debian"]


def test_staged_files_are_named_by_content_and_passwords_are_closed(host, tmp_path):
    host.write("etc/apt/sources.list", "deb http://mirror.lab/debian bookworm main\n")
    host.write("etc/apt/auth.conf", "machine m password x")
    site = host.site()
    staged = stage(site, tmp_path / "staged")
    assert stage(site, tmp_path / "staged") == staged
    assert {str(p.relative_to(staged)) for p in staged.rglob("*") if p.is_file()} == set(site.files)
    assert stat.S_IMODE((staged / "auth.conf").stat().st_mode) == 0o600
    assert stat.S_IMODE((staged / "apt.conf").stat().st_mode) == 0o644
    assert mounts(site, staged)[0].target == SITE_DIR
    assert [path.name for path in (tmp_path / "staged").iterdir()] == [site.digest()]


def test_base_key_knows_the_archives_and_nothing_else_of_the_site(host):
    plain = host.site()
    proxied = host.site(environ={"https_proxy": "x"}, dump='Acquire::http::Proxy "y";\n')
    assert base.recipe_key(plain) == base.recipe_key(proxied)
    other = host.site(BuildConfig(mirror="http://other.lab/debian"))
    assert base.recipe_key(plain) != base.recipe_key(other)
