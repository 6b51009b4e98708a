"""Which local files go where: the user's code, added directories, build contexts.

Nothing is read here but directories; contents are hashed and uploaded by ``hostd/sdk/upload.py``.
Code leaves out what no container needs: hidden directories and files, ``__pycache__``, ``*.pyc``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from hostd.errors import InvalidError
from hostd.sdk.dockerignore import FilePatternMatcher, matcher_of
from hostd.sdk.entry_module import container_name, file_of
from hostd.sdk.image import SOURCE_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from hostd.sdk.function import Function
    from hostd.sdk.image import Ignore

FILES_MAX = 100_000
"""Of one directory; the API takes no more digests in one request."""
_COPIES = re.compile(r"^\s*(?:ONBUILD\s+)?(?:COPY|ADD)\s", re.IGNORECASE | re.MULTILINE)
_MOUNTS = re.compile(r"^\s*RUN\s+--mount=", re.IGNORECASE | re.MULTILINE)


class Entry(NamedTuple):
    """One file, directory or link and where it goes."""

    remote: str
    local: str
    kind: str = "file"
    mode: int = 0o644
    target: Optional[str] = None


def one_file(local: str, remote: str) -> Entry:
    """A single file.

    Raises:
        InvalidError: it is not there, or not a file.
    """
    try:
        found = os.stat(local)
    except OSError as error:
        raise InvalidError(f"file {local}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidError(f"{local} is not a file", hint="add_local_dir adds directories")
    return Entry(remote, local, mode=stat.S_IMODE(found.st_mode) & 0o777)


def directory(local: str, remote: str, ignore: Ignore | None) -> list[Entry]:
    """A directory's files below a remote path; links are followed, empty directories kept."""
    return _walk(local, remote.rstrip("/") + "/", _predicate(ignore), follow=True)


def named_module(name: str, remote: str, ignore: Ignore | None) -> list[Entry]:
    """A module or package that can be imported here, below a remote path.

    Raises:
        InvalidError: there is none of this name, or it has no files.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        raise InvalidError(f"module {name} cannot be found", hint="is its folder on sys.path?")
    below = f"{remote}/{name.replace('.', '/')}"
    ignored = is_private if ignore is None else _predicate(ignore)
    if spec.submodule_search_locations:
        found = []
        for folder in spec.submodule_search_locations:
            found += _walk(folder, f"{below}/", ignored, follow=True)
        return found
    if not spec.origin or not os.path.isfile(spec.origin):
        raise InvalidError(f"module {name} has no source file: it is {spec.origin}")
    return [one_file(spec.origin, below + os.path.splitext(spec.origin)[1])]


def of_function(function: Function[Any, Any, Any]) -> list[Entry]:
    """What a function's container needs besides its image: its module, the image's additions."""
    found: list[Entry] = []
    if function.includes_source:
        found += of_module(function.get_raw_f().__module__)
    image = function.image
    for local in image.attached if image is not None else ():
        found += local.entries()
    # The last addition of a path wins, as if they were copied one after another.
    return list({entry.remote: entry for entry in found}.values())


def of_module(module_name: str) -> list[Entry]:
    """A module's file, or the whole package that it is in; nothing for what is installed."""
    module = sys.modules.get(module_name)
    name = container_name(module_name)
    file = None if module is None else file_of(module)
    if name is None or file is None or _is_installed(file):
        return []
    top, _, rest = name.partition(".")
    is_package = os.path.basename(file) == "__init__.py"
    if not rest and not is_package:
        return [one_file(file, f"{SOURCE_ROOT}/{name}.py")]
    folder = os.path.dirname(file)
    for _ in range(name.count(".") - (0 if is_package else 1)):
        folder = os.path.dirname(folder)
    if os.path.basename(folder) == top:
        return _walk(folder, f"{SOURCE_ROOT}/{top}/", is_private, follow=True)
    # A loader with ideas of its own: only this file has a known place.
    ending = "/__init__.py" if is_package else ".py"
    return [one_file(file, f"{SOURCE_ROOT}/{name.replace('.', '/')}{ending}")]


def build_context(folder: str, dockerfile: str | None, ignore: Ignore | None) -> list[Entry]:
    """Every file of a build context, with paths relative to it; links stay links."""
    if ignore is not None:
        predicate = _predicate(ignore)
    else:
        predicate = _dockerignore(folder, dockerfile)
    return _walk(folder, "", predicate, follow=False)


def copies_from_context(text: str) -> bool:
    """Whether a Dockerfile may read files of its context."""
    return _COPIES.search(text) is not None or _MOUNTS.search(text) is not None


def read_text(path: str) -> str:
    """The text of a Dockerfile.

    Raises:
        InvalidError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"Dockerfile {path}: {error}") from error


def is_private(path: Path) -> bool:
    """Whether code leaves this out: hidden, compiled, or a cache."""
    return (
        path.name.startswith(".") or path.name == "__pycache__" or path.suffix in (".pyc", ".pyo")
    )


def _predicate(ignore: Ignore | None) -> Callable[[Path], bool]:
    if callable(ignore):
        return ignore
    if isinstance(ignore, str):
        raise InvalidError(f"ignore is {ignore!r}, expected a list of patterns")
    return matcher_of(ignore or ())


def _dockerignore(folder: str, dockerfile: str | None) -> FilePatternMatcher:
    """The ignore file that belongs to the Dockerfile, else the one of the context."""
    candidates = [f"{dockerfile}.dockerignore"] if dockerfile else []
    for path in (*candidates, os.path.join(folder, ".dockerignore")):
        if os.path.isfile(path):
            return FilePatternMatcher.from_file(path)
    return FilePatternMatcher()


def _is_installed(file: str) -> bool:
    """Whether a file belongs to the interpreter or an installed package: the image has its own."""
    paths = sysconfig.get_paths()
    real = os.path.realpath(file)
    for key in ("stdlib", "platstdlib", "purelib", "platlib"):
        if real.startswith(os.path.realpath(paths[key]) + os.sep):
            return True
    return False


def _walk(
    folder: str, prefix: str, ignored: Callable[[Path], bool], *, follow: bool
) -> list[Entry]:
    if not os.path.isdir(folder):
        raise InvalidError(f"directory {folder} is not there")
    found = []
    for entry in _entries(folder, "", prefix, ignored, follow=follow, above=()):
        found.append(entry)
        if len(found) > FILES_MAX:
            raise InvalidError(
                f"directory {folder} has more than {FILES_MAX} files",
                hint="leave some out with ignore=[...]",
            )
    return found


def _entries(
    folder: str,
    relative: str,
    prefix: str,
    ignored: Callable[[Path], bool],
    *,
    follow: bool,
    above: tuple[tuple[int, int], ...],
) -> Iterator[Entry]:
    """What is below a folder, in the order of names: the same tree always gives the same list."""
    prunes = getattr(ignored, "may_prune", True)
    is_empty = True
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        path = relative + item.name
        is_ignored = ignored(Path(path))
        is_empty = is_empty and is_ignored
        if item.is_symlink() and not follow:
            if not is_ignored:
                yield Entry(prefix + path, item.path, "symlink", 0o777, os.readlink(item.path))
        elif item.is_dir():
            status = item.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above or (is_ignored and prunes):
                continue
            inner = (*above, identity)
            yield from _entries(item.path, f"{path}/", prefix, ignored, follow=follow, above=inner)
        elif item.is_file() and not is_ignored:
            yield Entry(prefix + path, item.path, mode=stat.S_IMODE(item.stat().st_mode) & 0o777)
    if is_empty and relative and not ignored(Path(relative.rstrip("/"))):
        yield Entry(prefix + relative.rstrip("/"), folder, "dir", 0o755)
