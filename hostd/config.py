"""Configuration of a host: flag > environment (``HOSTD_…``) > ``/etc/hostd/hostd.toml`` > default.

No file is needed. Settings, in TOML sections (the environment variable is ``HOSTD_`` and the
dotted name in upper case with ``_``; the flag is ``--`` and the dotted name with ``-``):

    data_dir = "/var/lib/hostd"     what must survive: blobs, images, state, logs
    run_dir = "/run/hostd"          sockets, mounts, bundles; may vanish at a reboot
    log_level = "info"              debug | info | warning | error

    [api]
    listen = "127.0.0.1:7900"       host:port for people on this machine; "": unix socket only

    [fs]
    mode = "auto"                   erofs | fuse | auto: how images are served
    fetch_timeout_s = 20.0          a missing blob becomes EIO after this time
    source_dir = ""                 blobs of another host (ab/cdef…), asked for missing ones

    [runtime]
    oci = "runc"                    runc | crun | a path: the OCI runtime
    subnet = "10.117.0.0/16"        addresses of containers, one /16 or smaller
    memory_default_mib = 0          limit of functions that name none; 0: no limit
    log_bytes_max = 104857600       of one container's log; what follows is counted and dropped
    stop_grace_s = 10.0             between SIGTERM and SIGKILL

    [build]
    inherit_site = true             give build steps the host's pip, apt, proxy and CA settings
    env = {}                        more environment for build steps; never part of the image
    ca_bundle = ""                  CA file for build steps; "" finds the host's
    mirror = ""                     apt sources for the base image; "" uses the host's
    parallel = 2                    builds that run at the same time

    [limits]
    containers_max = 500            of this host

Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from hostd.errors import ConfigError

DEFAULT_PATH = Path("/etc/hostd/hostd.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class APIConfig:
    """Section ``api``."""

    listen: str = "127.0.0.1:7900"


@dataclass(frozen=True, slots=True, kw_only=True)
class FSConfig:
    """Section ``fs``."""

    mode: str = "auto"
    fetch_timeout_s: float = 20.0
    source_dir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Section ``runtime``."""

    oci: str = "runc"
    subnet: str = "10.117.0.0/16"
    memory_default_mib: int = 0
    log_bytes_max: int = 100 * 2**20
    stop_grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Section ``build``."""

    inherit_site: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: str = ""
    mirror: str = ""
    parallel: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Section ``limits``."""

    containers_max: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one daemon, validated."""

    data_dir: Path = Path("/var/lib/hostd")
    run_dir: Path = Path("/run/hostd")
    log_level: str = "info"
    api: APIConfig = field(default_factory=APIConfig)
    fs: FSConfig = field(default_factory=FSConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    build: BuildConfig = field(default_factory=BuildConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def socket(self) -> Path:
        """The unix socket of the API."""
        return self.run_dir / "hostd.sock"


SECTIONS: Mapping[str, type] = {
    "api": APIConfig,
    "fs": FSConfig,
    "runtime": RuntimeConfig,
    "build": BuildConfig,
    "limits": LimitsConfig,
}


def known_keys() -> list[str]:
    """Every setting by its dotted name, sections expanded: ``data_dir``, ``fs.mode``, …"""
    keys = [f.name for f in dataclasses.fields(Config) if f.name not in SECTIONS]
    for section, cls in SECTIONS.items():
        keys += [f"{section}.{f.name}" for f in dataclasses.fields(cls)]
    return keys


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str],
    path: Path | None = None,
) -> Config:
    """Read and validate the configuration.

    Args:
        flags: dotted name to value, as given on the command line; None values count as not given.
        environ: usually ``os.environ``.
        path: a file that must exist; None: the default file if it is there.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; it names the source.
    """
    values: dict[str, tuple[Any, str]] = {}
    for key, value in _from_file(path).items():
        values[key] = (value, str(path or DEFAULT_PATH))
    for key, value in _from_environment(environ).items():
        values[key] = (value, f"environment variable {_variable(key)}")
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = (value, "command line")
    return _build(values)


def _variable(key: str) -> str:
    return "HOSTD_" + key.replace(".", "_").upper()


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None and not DEFAULT_PATH.exists():
        return {}
    chosen = path or DEFAULT_PATH
    try:
        document = tomllib.loads(chosen.read_text())
    except OSError as error:
        raise ConfigError(f"{chosen} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{chosen} is not TOML: {error}") from error
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if key in SECTIONS and isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


# Variables of the same prefix that belong to the client, to install.sh and to tests.
_FOREIGN = frozenset(
    f"HOSTD_{name}"
    for name in (
        *("URL", "TOKEN", "TOKEN_FILE", "SOCKET", "CONTEXT", "CONFIG", "NAMESPACE"),
        *("LOCAL", "DEBUG", "VERSION", "BASE_URL", "BUNDLE", "SKIP_START", "SKIP_DOCTOR"),
    )
)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    by_variable = {_variable(key): key for key in known_keys()}
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("HOSTD_") or variable in _FOREIGN:
            continue
        if variable.startswith(("HOSTD_TEST_", "HOSTD_FAILPOINT")):
            continue
        if variable not in by_variable:
            raise ConfigError(
                f"environment variable {variable} is not a setting",
                hint=_nearest(variable, by_variable),
            )
        found[by_variable[variable]] = text
    return found


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _build(values: Mapping[str, tuple[Any, str]]) -> Config:
    known = known_keys()
    per_section: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    top: dict[str, Any] = {}
    for key, (value, source) in values.items():
        if key not in known:
            raise ConfigError(f"{source}: {key} is not a setting", hint=_nearest(key, known))
        section, _, name = key.rpartition(".")
        cls = SECTIONS[section] if section else Config
        converted = _convert(key, value, get_type_hints(cls)[name], source)
        (per_section[section] if section else top)[name] = converted
    config = Config(**top, **{name: cls(**per_section[name]) for name, cls in SECTIONS.items()})
    _check(config)
    return config


def _convert(key: str, value: Any, wanted: Any, source: str) -> Any:
    problem = ConfigError(
        f"{source}: {key} is {value!r}, expected {getattr(wanted, '__name__', 'a table')}"
    )
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    if wanted is bool:
        text = str(value).lower()
        if text in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            return text in ("true", "1", "yes", "on")
        raise problem
    if wanted in (int, float) and not isinstance(value, bool):
        try:
            return wanted(value)
        except (TypeError, ValueError):
            raise problem from None
    if wanted is str and isinstance(value, str):
        return value
    if key == "build.env":
        return _convert_env(value, problem)
    raise problem


def _convert_env(value: Any, problem: ConfigError) -> dict[str, str]:
    if isinstance(value, str):
        try:
            value = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            raise problem from None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise problem
    return dict(value)


def _check(config: Config) -> None:
    def need(ok: bool, text: str) -> None:
        if not ok:
            raise ConfigError(text)

    need(
        config.fs.mode in ("erofs", "fuse", "auto"),
        f"fs.mode is {config.fs.mode!r}, expected erofs, fuse or auto",
    )
    need(
        config.log_level in ("debug", "info", "warning", "error"),
        f"log_level is {config.log_level!r}, expected debug, info, warning or error",
    )
    need(
        0 < config.fs.fetch_timeout_s <= 60,
        f"fs.fetch_timeout_s is {config.fs.fetch_timeout_s}, expected 0 < x <= 60",
    )
    need(
        config.runtime.stop_grace_s >= 0,
        f"runtime.stop_grace_s is {config.runtime.stop_grace_s}, expected >= 0",
    )
    need(
        1 <= config.build.parallel <= 64,
        f"build.parallel is {config.build.parallel}, expected 1 to 64",
    )
    need(
        1 <= config.limits.containers_max <= 10_000,
        f"limits.containers_max is {config.limits.containers_max}, expected 1 to 10000",
    )
    need(
        config.data_dir.is_absolute(),
        f"data_dir is {str(config.data_dir)!r}, expected an absolute path",
    )
    need(
        config.run_dir.is_absolute(),
        f"run_dir is {str(config.run_dir)!r}, expected an absolute path",
    )
    need(
        len(str(config.run_dir)) <= 60,
        f"run_dir is {len(str(config.run_dir))} characters long, at most 60 fit a socket name",
    )
    if config.api.listen:
        host, _, port = config.api.listen.rpartition(":")
        need(
            bool(host) and port.isdigit() and int(port) < 65_536,
            f"api.listen is {config.api.listen!r}, expected host:port",
        )
