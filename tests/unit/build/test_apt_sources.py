"""apt's source files: both formats, and which archives are Debian's."""

import pytest

from hostd.build.aptsources import (
    AptSource,
    for_suite,
    is_debian,
    of_mirror,
    parse_deb822,
    parse_lines,
    public,
    read_sources,
)

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def source(uri="http://mirror.lab/debian", suite="bookworm", components=("main",), **more):
    return AptSource(uri=uri, suite=suite, components=components, **more)


def test_one_line_format():
    text = """# a comment
deb http://mirror.lab/debian bookworm main contrib  # why
deb-src http://mirror.lab/debian bookworm main
deb [arch=amd64 signed-by=/a.gpg,/b.gpg trusted=yes] http://mirror.lab/debian bookworm-updates main
deb http://flat.lab/ ./
nonsense
"""
    assert parse_lines(text) == [
        source(components=("main", "contrib")),
        source(suite="bookworm-updates", signed_by=("/a.gpg", "/b.gpg"), is_trusted=True),
        AptSource(uri="http://flat.lab/", suite="./", components=()),
    ]


def test_deb822_format():
    text = f"""# header
Types: deb deb-src
URIs: http://mirror.lab/debian
# between
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: {KEYRING}

Types: deb
Enabled: no
URIs: http://off.lab/debian
Suites: bookworm
Components: main

types: deb
uris: http://keyed.lab/debian
suites: bookworm
components: main
trusted: yes
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
"""
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabc\n-----END PGP PUBLIC KEY BLOCK-----\n"
    assert parse_deb822(text) == [
        source(signed_by=(KEYRING,)),
        source(suite="bookworm-updates", signed_by=(KEYRING,)),
        source("http://keyed.lab/debian", key=key, is_trusted=True),
    ]


def test_all_files_of_a_host_are_read(tmp_path):
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.lab/debian bookworm main\n")
    (parts / "b.list").write_text("deb http://b.lab/debian bookworm main\n")
    (parts / "c.sources").write_text(
        "Types: deb\nURIs: http://c.lab/debian\nSuites: bookworm\nComponents: main\n"
    )
    (parts / "d.list.save").write_text("deb http://d.lab/debian bookworm main\n")
    assert [each.uri for each in read_sources(tmp_path)] == [
        "http://a.lab/debian",
        "http://b.lab/debian",
        "http://c.lab/debian",
    ]
    assert read_sources(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (source("http://deb.debian.org/debian"), True),
        (source("http://security.debian.org/debian-security", "bookworm-security"), True),
        (source("http://ftp.de.debian.org/debian", "stable"), True),
        (source(), True),
        (source("http://art.lab/repo", signed_by=(KEYRING,)), True),
        (source("http://art.lab/repo"), False),
        (source(signed_by=("/vendor.gpg",)), False),
        (source(key="x"), False),
        (source(suite="stable"), False),
        (source(suite="bookworm-pgdg"), False),
        (source(suite="jammy"), False),
        (source(components=("stable",)), False),
    ],
)
def test_only_archives_of_debian_count(candidate, expected):
    assert is_debian(candidate) is expected


def test_own_release_is_taken_as_it_is():
    sources = [
        source(components=("main", "contrib")),
        source(suite="bookworm-backports"),
        source("http://vendor.lab/x", signed_by=("/v.gpg",)),
        source("http://other.lab/debian", "trixie"),
    ]
    assert for_suite(sources, "bookworm") == [source()]


def test_other_releases_are_renamed():
    sources = [
        source(suite="trixie"),
        source(suite="trixie-updates"),
        source("http://mirror.lab/debian-security", "trixie-security"),
        source("http://old.lab/debian-security", "buster/updates"),
    ]
    assert for_suite(sources, "bookworm") == [
        source(),
        source(suite="bookworm-updates"),
        source("http://mirror.lab/debian-security", "bookworm-security"),
        source("http://old.lab/debian-security", "bookworm-security"),
    ]


def test_lines_name_keyrings_and_trust():
    assert source(is_trusted=True).line(["/k.gpg"]) == (
        "deb [signed-by=/k.gpg trusted=yes] http://mirror.lab/debian bookworm main"
    )
    assert source().line([]) == "deb http://mirror.lab/debian bookworm main"


def test_mirror_setting_is_an_address_or_lines():
    assert of_mirror("http://mirror.lab/debian", "bookworm") == [source()]
    assert of_mirror("deb http://mirror.lab/debian x main\n", "bookworm") == [source(suite="x")]


def test_public_archives_have_three_suites():
    assert [each.suite for each in public("bookworm")] == [
        "bookworm",
        "bookworm-updates",
        "bookworm-security",
    ]
