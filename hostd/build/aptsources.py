"""Where this host gets Debian packages from: apt's source files, read for Debian archives only.

Both formats of sources.list(5) are read: one line each (``sources.list``, ``*.list``) and deb822
(``*.sources``). Archives of other vendors are left out: a base image is Debian alone. An archive is
Debian's when its suite is one of Debian's, its components hold ``main``, and the key that signs it
is Debian's; where no key is named, its path must look like a mirror's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

PUBLIC_ARCHIVE = "http://deb.debian.org/debian"
PUBLIC_SECURITY = "http://deb.debian.org/debian-security"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_CODENAMES = ("buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid")
_ALIASES = ("oldstable", "stable", "testing", "unstable")
_SUITE = re.compile(
    rf"({'|'.join((*_CODENAMES, *_ALIASES))})(-updates|-security|/updates|-backports)?"
)
_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*(.*)")
_FILE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    """One archive with one suite."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: tuple[str, ...] = ()
    """Keyrings, as paths on this host (or fingerprints)."""
    key: str = ""
    """An armoured key that stands in the source file itself."""
    is_trusted: bool = False
    """``trusted=yes``: taken without a signature."""

    def line(self, keyrings: Sequence[str]) -> str:
        """The source in one-line form, with these keyrings."""
        options = []
        if keyrings:
            options.append(f"signed-by={','.join(keyrings)}")
        if self.is_trusted:
            options.append("trusted=yes")
        bracket = f"[{' '.join(options)}] " if options else ""
        return f"deb {bracket}{self.uri} {self.suite} {' '.join(self.components)}"


def read_sources(etc_apt: Path) -> list[AptSource]:
    """Every package source of a host, in apt's order; unreadable files are left out."""
    found: list[AptSource] = []
    paths = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    for path in paths:
        text = _read(path)
        if path.suffix == ".sources":
            found += parse_deb822(text)
        elif path.suffix == ".list":
            found += parse_lines(text)
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def parse_lines(text: str) -> list[AptSource]:
    """The one-line format; what is no ``deb`` line is left out."""
    found = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None:
            continue
        options = dict(pair.partition("=")[::2] for pair in (match[1] or "").split())
        found.append(
            AptSource(
                uri=match[2],
                suite=match[3],
                components=tuple(match[4].split()),
                signed_by=tuple(filter(None, options.get("signed-by", "").split(","))),
                is_trusted=options.get("trusted", "").lower() == "yes",
            )
        )
    return found


def parse_deb822(text: str) -> list[AptSource]:
    """The stanza format: every URI with every suite is a source."""
    found = []
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split():
            continue
        if stanza.get("enabled", "yes").strip().lower() in ("no", "false", "0"):
            continue
        signed_by = stanza.get("signed-by", "")
        is_key = "BEGIN PGP" in signed_by
        for uri in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                source = AptSource(
                    uri=uri,
                    suite=suite,
                    components=tuple(stanza.get("components", "").split()),
                    signed_by=() if is_key else tuple(re.split(r"[\s,]+", signed_by.strip())),
                    key=_key(signed_by) if is_key else "",
                    is_trusted=stanza.get("trusted", "").strip().lower() == "yes",
                )
                found.append(replace(source, signed_by=tuple(filter(None, source.signed_by))))
    return found


def _stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """Fields by lower-case name; continuation lines are joined with newlines."""
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()


def _key(field: str) -> str:
    lines = ["" if line == "." else line for line in field.strip().splitlines()]
    return "\n".join(lines) + "\n"


def is_debian(source: AptSource) -> bool:
    """Whether an archive is a mirror of Debian's own."""
    if not _SUITE.fullmatch(source.suite) or "main" not in source.components:
        return False
    address = urlsplit(source.uri)
    if address.hostname is not None and address.hostname.endswith(".debian.org"):
        return True
    if any("debian-archive" in path for path in source.signed_by):
        return True
    if source.signed_by or source.key:
        return False
    is_alias = source.suite.partition("-")[0].partition("/")[0] in _ALIASES
    return not is_alias and _last_name(source.uri) in ("debian", "debian-security")


def _last_name(uri: str) -> str:
    return urlsplit(uri).path.rstrip("/").rpartition("/")[2]


def for_suite(sources: Sequence[AptSource], suite: str) -> list[AptSource]:
    """The Debian archives among the sources, for another release than the host's if need be.

    The host's own release decides when it is the one that is wanted; otherwise the archives that it
    uses for its release are taken, with the names of the suites changed.
    """
    debian = [source for source in sources if is_debian(source)]
    same = [source for source in debian if _release(source) == suite]
    chosen = same or [
        replace(source, suite=_renamed(source.suite, suite), components=("main",))
        for source in debian
    ]
    main = [replace(source, components=("main",)) for source in chosen]
    kept = [source for source in main if not source.suite.endswith("-backports")]
    return list(dict.fromkeys(kept))


def _release(source: AptSource) -> str:
    return re.split(r"[-/]", source.suite, maxsplit=1)[0]


def _renamed(suite: str, release: str) -> str:
    found = _SUITE.fullmatch(suite)
    assert found is not None, "only Debian's suites come here"
    return release + (found[2] or "").replace("/updates", "-security")


def public(suite: str) -> list[AptSource]:
    """Debian's own archives for a release."""
    return [
        AptSource(uri=PUBLIC_ARCHIVE, suite=suite, components=("main",)),
        AptSource(uri=PUBLIC_ARCHIVE, suite=f"{suite}-updates", components=("main",)),
        AptSource(uri=PUBLIC_SECURITY, suite=f"{suite}-security", components=("main",)),
    ]


def of_mirror(text: str, suite: str) -> list[AptSource]:
    """What the setting ``build.mirror`` names: an address, or source lines."""
    if text.lstrip().startswith("deb "):
        return parse_lines(text)
    return [AptSource(uri=text.strip(), suite=suite, components=("main",))]
