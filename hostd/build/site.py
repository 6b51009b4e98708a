"""What a build step inherits from the place where it runs: package indexes, proxies, certificates.

A site may have a package mirror, a proxy, or a TLS-inspecting gateway with its own CA. Build steps
need these settings; the image and its cache key must not have them. So they come as environment of
the step and as files bound in below SITE_DIR, and nothing of it is in a layer:

- ``PIP_*`` and ``UV_*`` that say where packages come from; proxy variables; CA bundles rewritten to
  one file; pip's configuration files merged into one; directories that ``file://`` indexes and
  ``find-links`` name, bound at the same path;
- apt: options for proxies and certificates and, when the host has another mirror than Debian's
  public one, a source list, all behind ``APT_CONFIG`` so that no file of the image is covered.
"""

from __future__ import annotations

import configparser
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from hostd.build import aptsources
from hostd.build.aptsources import AptSource
from hostd.config import BuildConfig
from hostd.log import get_logger
from hostd.runtime import BindMount

log = get_logger(__name__)

SITE_DIR = "/run/hostd/site"
CA_FILE = "ca.crt"
PIP_FILE = "pip.conf"
APT_FILE = "apt.conf"
APT_OPTIONS_FILE = "apt-options.conf"
SOURCES_FILE = "sources.list"
PASSWORDS_FILE = "auth.conf"
FILE_BYTES_MAX = 8 << 20
"""Of one file of the host that is read; CA bundles have 0.2 MiB."""
APT_TIMEOUT_S = 10.0
"""``apt-config dump`` takes 5 ms."""

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
"""Set for every step when there is a bundle: openssl and uv, requests, curl and git, pip."""
_MORE_CA_VARIABLES = ("GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO")
"""Set when the daemon has them."""
_SYSTEM_BUNDLES = ("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt")
_PIP_OPTIONS = frozenset(
    {
        "index-url",
        "extra-index-url",
        "find-links",
        "no-index",
        "trusted-host",
        "proxy",
        "cert",
        "timeout",
        "default-timeout",
        "retries",
        "prefer-binary",
        "disable-pip-version-check",
    }
)
"""Where packages come from, and how. Others (user, target, cache-dir) are about the host itself."""
_UV_VARIABLE = re.compile(
    r"UV_(INDEX.*|DEFAULT_INDEX|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|INSECURE_HOST|HTTP_TIMEOUT|NATIVE_TLS)"
)
_LOCATIONS = frozenset({"index-url", "extra-index-url", "find-links"})
_APT_OPTION = re.compile(
    r"Acquire::(Check-Valid-Until|Check-Date|Max-FutureTime|Retries|ForceIPv[46]|By-Hash"
    r"|IndexTargets::deb::[\w-]+::DefaultEnabled"
    r"|(https?|ftp)::([\w.:-]+::)?(Proxy|Timeout|CaInfo|Verify-Peer|Verify-Host|User-Agent|No-Cache"
    r"|Pipeline-Depth|AllowRedirect))"
)
_INDEX_SIBLINGS = ("files", "packages", "wheels")
"""Directories beside a local index to which its pages usually link (``../../files/…``)."""
_NEVER_BOUND = frozenset(
    map(Path, ["/", "/bin", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The settings of this place."""

    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By their path below SITE_DIR."""
    directories: tuple[Path, ...] = ()
    """Directories of the host that appear at the same path, read-only."""
    sources: tuple[AptSource, ...] = ()
    """Debian archives, for the base image's release."""
    keyrings: tuple[tuple[str, ...], ...] = ()
    """For each source the names of its keyrings below SITE_DIR."""
    apt_options: tuple[tuple[str, str], ...] = ()

    @property
    def has_own_mirror(self) -> bool:
        """Whether Debian packages come from elsewhere than Debian's public address."""
        return any(
            source.uri.rstrip("/") not in (aptsources.PUBLIC_ARCHIVE, aptsources.PUBLIC_SECURITY)
            for source in self.sources
        )

    def digest(self) -> str:
        """A name for the files, made from their content."""
        hasher = blake3()
        for name in sorted(self.files):
            hasher.update(f"{name}\0{len(self.files[name])}\0".encode() + self.files[name])
        return hasher.hexdigest()[:16]

    def step_env(self, *, has_default_sources: bool) -> dict[str, str]:
        """The environment of one step.

        Args:
            has_default_sources: the image's own apt sources are Debian's public ones, so the
                site's may stand in for them.
        """
        env = dict(self.env)
        if APT_FILE in self.files:
            name = APT_FILE if has_default_sources else APT_OPTIONS_FILE
            env["APT_CONFIG"] = f"{SITE_DIR}/{name}"
        return env


def gather(
    config: BuildConfig,
    *,
    suite: str,
    environ: Mapping[str, str],
    home: Path,
    root: Path = Path("/"),
    apt_dump: str | None = None,
) -> Site:
    """Read the settings of this host; what the configuration says wins. Blocking.

    Args:
        suite: the Debian release that base images are made of.
        environ: of the daemon.
        home: whose ``.config/pip/pip.conf`` counts.
        root: where ``/etc`` is looked for (tests).
        apt_dump: output of ``apt-config dump``; None: ask it.
    """
    if not config.inherit_site:
        environ, home, apt_dump = {}, Path("/nonexistent"), ""
        root = Path("/nonexistent")
    pip_conf = _pip_configuration(environ, home, root)
    bundle = _ca_bundle(config, environ, pip_conf, root)
    options = _apt_options(_apt_dump() if apt_dump is None else apt_dump)
    sources, ring_files, rings = _sources(config, root, suite)
    files: dict[str, bytes] = {**ring_files}
    env = _environment(environ)
    if bundle:
        files[CA_FILE] = bundle
        named = [name for name in _MORE_CA_VARIABLES if name in environ]
        env.update(dict.fromkeys((*_CA_VARIABLES, *named), f"{SITE_DIR}/{CA_FILE}"))
        options = [
            (k, f"{SITE_DIR}/{CA_FILE}" if k.endswith("::CaInfo") else v) for k, v in options
        ]
    if pip_conf.sections():
        files[PIP_FILE] = _pip_file(pip_conf, has_bundle=bool(bundle))
        env["PIP_CONFIG_FILE"] = f"{SITE_DIR}/{PIP_FILE}"
    env.update(config.env)
    site = Site(
        env=env,
        files=files,
        directories=tuple(_directories(env, pip_conf)),
        sources=tuple(sources),
        keyrings=tuple(rings),
        apt_options=tuple(options),
    )
    return _with_apt_files(site, root)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in environ.items():
        pip_option = name[4:].lower().replace("_", "-") if name.startswith("PIP_") else ""
        if name.lower() in _PROXIES or pip_option in _PIP_OPTIONS or _UV_VARIABLE.fullmatch(name):
            kept[name] = value
    return kept


# --- certificates ---------------------------------------------------------------------------------


def _ca_bundle(
    config: BuildConfig,
    environ: Mapping[str, str],
    pip_conf: configparser.RawConfigParser,
    root: Path,
) -> bytes:
    """All certificates that the host trusts, each bundle once; or those of the setting alone."""
    if config.ca_bundle:
        data = _read(Path(config.ca_bundle))
        if not data:
            log.warning("build.ca_bundle cannot be read", path=config.ca_bundle)
        return data
    named = [environ.get(name, "") for name in _CA_VARIABLES]
    named += [pip_conf.get(name, "cert", fallback="") for name in pip_conf.sections()]
    paths = [Path(path) for path in named if path.startswith("/")]
    paths += [root / path for path in _SYSTEM_BUNDLES]
    bundles = {data: None for path in paths if (data := _read(path))}
    return b"\n".join(bundles)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError:
        return b""


# --- pip ------------------------------------------------------------------------------------------


def _pip_configuration(
    environ: Mapping[str, str], home: Path, root: Path
) -> configparser.RawConfigParser:
    """pip's files merged as pip would merge them, without options about the host itself."""
    paths = [root / "etc/xdg/pip/pip.conf", root / "etc/pip.conf", home / ".pip/pip.conf"]
    paths.append(home / ".config/pip/pip.conf")
    if environ.get("PIP_CONFIG_FILE", "").startswith("/"):
        paths.append(Path(environ["PIP_CONFIG_FILE"]))
    merged = configparser.RawConfigParser()
    for path in paths:
        one = configparser.RawConfigParser()
        try:
            one.read_string(_read(path).decode("utf-8", "replace"))
        except configparser.Error as error:
            log.warning("pip configuration cannot be read", path=str(path), error=str(error))
            continue
        for section in one.sections():
            kept = {k: v for k, v in one.items(section) if k.replace("_", "-") in _PIP_OPTIONS}
            if kept and not merged.has_section(section):
                merged.add_section(section)
            for name, value in kept.items():
                merged.set(section, name, value)
    return merged


def _pip_file(pip_conf: configparser.RawConfigParser, *, has_bundle: bool) -> bytes:
    for section in pip_conf.sections():
        if has_bundle and pip_conf.has_option(section, "cert"):
            pip_conf.set(section, "cert", f"{SITE_DIR}/{CA_FILE}")
    text = io.StringIO()
    pip_conf.write(text)
    return text.getvalue().encode()


def _directories(env: Mapping[str, str], pip_conf: configparser.RawConfigParser) -> Iterator[Path]:
    """Existing local directories that the settings name as places of packages."""
    values = [value for name, value in env.items() if name.startswith(("PIP_", "UV_"))]
    for section in pip_conf.sections():
        values += [
            value for name, value in pip_conf.items(section) if name.replace("_", "-") in _LOCATIONS
        ]
    words = dict.fromkeys(word for value in values for word in re.split(r"[\s,]+", value))
    found = (place for word in words if (place := _local_directory(word)) is not None)
    yield from _without_nested(place for each in found for place in _with_siblings(each))


def _local_directory(word: str) -> Path | None:
    location = word.partition("=")[2] if re.match(r"\w+=file:", word) else word
    if location.startswith("file:"):
        location = unquote(urlsplit(location).path)
    path = Path(location)
    if not location.startswith("/") or ".." in path.parts:
        return None
    try:
        return None if path in _NEVER_BOUND or not path.is_dir() else path
    except OSError:
        return None


def _with_siblings(path: Path) -> Iterator[Path]:
    yield path
    if path.name == "simple":
        yield from (sibling for name in _INDEX_SIBLINGS if (sibling := path.parent / name).is_dir())


def _without_nested(paths: Iterable[Path]) -> list[Path]:
    every = sorted(set(paths))
    return [path for path in every if not any(other in path.parents for other in every)]


# --- apt ------------------------------------------------------------------------------------------


def _apt_dump() -> str:
    program = shutil.which("apt-config")
    if program is None:
        return ""
    try:
        result = subprocess.run(
            [program, "dump"], capture_output=True, timeout=APT_TIMEOUT_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("apt-config cannot be asked", error=str(error))
        return ""
    return result.stdout


def _apt_options(dump: str) -> list[tuple[str, str]]:
    """The options of ``apt-config dump`` that say how packages are fetched."""
    found = []
    for line in dump.splitlines():
        match = re.fullmatch(r'([\w:.\-/]+) "(.*)";', line)
        if match and match[2] and _APT_OPTION.fullmatch(match[1].removesuffix("::")):
            found.append((match[1], match[2]))
    return found


def _sources(
    config: BuildConfig, root: Path, suite: str
) -> tuple[list[AptSource], dict[str, bytes], list[tuple[str, ...]]]:
    """Debian archives, the keyring files they need, and for each archive the names of its own."""
    if config.mirror:
        sources = aptsources.of_mirror(config.mirror, suite)
    else:
        found = aptsources.read_sources(root / "etc/apt")
        sources = aptsources.for_suite(found, suite) or aptsources.public(suite)
    files: dict[str, bytes] = {}
    rings: list[tuple[str, ...]] = []
    fallback = _host_keyrings(root)
    for source in sources:
        contents = [_read(root / path.lstrip("/")) for path in source.signed_by]
        if source.key:
            contents = [source.key.encode()]
        contents = [data for data in contents if data] or fallback
        names = [_keyring_name(data) for data in contents]
        files.update(zip(names, contents, strict=True))
        rings.append(tuple(names))
    return sources, files, rings


def _host_keyrings(root: Path) -> list[bytes]:
    """What the host's apt trusts where a source names no key: the keys of its trust store."""
    paths = [root / aptsources.DEBIAN_KEYRING.lstrip("/"), root / "etc/apt/trusted.gpg"]
    paths += sorted((root / "etc/apt/trusted.gpg.d").glob("*"))
    return list(dict.fromkeys(data for path in paths if (data := _read(path))))


def _keyring_name(data: bytes) -> str:
    # apt tells the two formats apart by the suffix.
    suffix = "asc" if b"-----BEGIN PGP" in data[:4096] else "gpg"
    return f"keyrings/{blake3(data).hexdigest()[:16]}.{suffix}"


def _with_apt_files(site: Site, root: Path) -> Site:
    lines = [f"{_quoted(name, value)}\n" for name, value in site.apt_options]
    if not lines and not site.has_own_mirror:
        return site
    files = dict(site.files)
    secrets = [root / "etc/apt/auth.conf", *sorted((root / "etc/apt/auth.conf.d").glob("*.conf"))]
    passwords = b"\n".join(data for path in secrets if (data := _read(path)))
    if passwords:
        files[PASSWORDS_FILE] = passwords
        lines.append(f"{_quoted('Dir::Etc::netrc', f'{SITE_DIR}/{PASSWORDS_FILE}')}\n")
    files[APT_OPTIONS_FILE] = "".join(lines).encode()
    if site.has_own_mirror:
        lines.append(f"{_quoted('Dir::Etc::sourcelist', f'{SITE_DIR}/{SOURCES_FILE}')}\n")
        files[SOURCES_FILE] = source_list(site, SITE_DIR).encode()
    files[APT_FILE] = "".join(lines).encode()
    return replace(site, files=files)


def _quoted(name: str, value: str) -> str:
    return f'{name} "{value}";'


def source_list(site: Site, directory: str) -> str:
    """The Debian archives in one-line form, with keyrings below a directory."""
    lines = [
        source.line([f"{directory}/{name}" for name in names])
        for source, names in zip(site.sources, site.keyrings, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)


# --- into the container ---------------------------------------------------------------------------


def stage(site: Site, parent: Path) -> Path:
    """Write the site's files into a directory of their own below ``parent``. Blocking.

    A directory is named by its content and never changes, so steps that run keep what they have.
    """
    final = parent / site.digest()
    if final.exists():
        return final
    parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    building = parent / f".{final.name}-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o755)
    for name, data in site.files.items():
        path = building / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600 if name == PASSWORDS_FILE else 0o644)
    building.rename(final)
    return final


def mounts(site: Site, staged: Path) -> Sequence[BindMount]:
    """What a build step gets bound in."""
    own = [BindMount(source=staged, target=SITE_DIR)] if site.files else []
    return [*own, *(BindMount(source=path, target=str(path)) for path in site.directories)]
