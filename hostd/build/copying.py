r"""What COPY and ADD take: names and patterns matched against the files of a build context.

The context is a list of files that the client sent by content; nothing here touches a disk. Rules
(Dockerfile reference, "COPY"; BuildKit where the reference is silent):

- Patterns are those of Go's ``filepath.Match``: ``*``, ``?``, ``[a-z]``, ``[^a-z]`` and ``\c``; a
  slash is matched by a slash only.
- A directory stands for what it contains; a symbolic link that is named is followed inside the
  context, one inside a directory is copied as a link.
- Names that lead out of the context are errors; a pattern may match nothing, a name may not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hostd.errors import InvalidError
from hostd.model import SourceFile

PATTERN_CHARACTERS_MAX = 4096
DEPTH_MAX = 255
"""Directories in each other, of a context: what an image may have."""
LINKS_MAX = 40
"""Symbolic links followed for one name, as in Linux."""


class ContextError(Exception):
    """A name or pattern does not fit the context; the caller knows the line."""

    def __init__(self, text: str, *, hint: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, directory or link to put into the image."""

    path: str
    """Below its source; ``""`` for the source itself."""
    kind: str = "file"
    mode: int = 0o644
    digest: str | None = None
    """As the client named it; None when ``data`` is the content."""
    data: bytes | None = None
    size_bytes: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What one word of a COPY stands for: a single file, or the contents of a directory."""

    name: str
    is_directory: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyWork:
    """A COPY with everything decided that can be decided without the image."""

    sources: tuple[Source, ...]
    destination: str
    """Absolute, without ``.`` and ``..``."""
    into_directory: bool
    """It ended in a slash: a directory, made when absent."""
    owner: str | None = None
    mode: int | None = None
    """Permissions for all files and new directories; None: those of the context."""
    unpack: bool = False
    """ADD: a tar archive would have to be unpacked."""


@dataclass(slots=True)
class _Place:
    """A name in the context, with what lies below it."""

    file: SourceFile | None = None
    children: dict[str, _Place] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return self.file is None or self.file.kind == "dir"


class Context:
    """The files of a build context as a tree.

    Raises:
        InvalidError: a path is absolute, leads out, stands twice or goes through a file.
    """

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._root = _Place()
        for file in files:
            self._add(file)

    def _add(self, file: SourceFile) -> None:
        names = [name for name in file.path.split("/") if name not in ("", ".")]
        if not names and file.kind == "dir":
            return
        if not names or file.path.startswith("/") or ".." in names or "\0" in file.path:
            raise InvalidError(f"{file.path!r} is not a path inside a build context")
        if len(names) > DEPTH_MAX:
            raise InvalidError(f"{file.path[:80]!r}… is more than {DEPTH_MAX} directories deep")
        place = self._root
        for name in names[:-1]:
            place = place.children.setdefault(name, _Place())
            if not place.is_directory:
                raise InvalidError(f"{file.path!r} goes through a file of the build context")
        last = place.children.setdefault(names[-1], _Place())
        if last.file is not None or (last.children and file.kind != "dir"):
            raise InvalidError(f"{file.path!r} stands twice in the build context")
        last.file = file

    def match(self, pattern: str) -> list[Source]:
        """The sources that a word stands for; empty only for a pattern that matches nothing.

        Raises:
            ContextError: the word leads out of the context, is not there, or is no pattern.
        """
        if len(pattern) > PATTERN_CHARACTERS_MAX:
            raise ContextError(f"source is longer than {PATTERN_CHARACTERS_MAX} characters")
        names = self._inside(pattern)
        if not any(is_pattern(name) for name in names):
            return [self._named(pattern, names)]
        found = list(self._matching(self._root, [], names))
        return [
            self._source(path, place) for path, place in sorted(found, key=lambda item: item[0])
        ]

    @staticmethod
    def _inside(pattern: str) -> list[str]:
        names: list[str] = []
        for name in pattern.split("/"):
            if name == "..":
                if not names:
                    raise ContextError(
                        f"source {pattern!r} lies outside the build context",
                        hint="only files below the context directory can be copied",
                    )
                names.pop()
            elif name not in ("", "."):
                names.append(name)
        return names

    def _named(self, pattern: str, names: list[str]) -> Source:
        place = self._follow(names)
        if place is None:
            raise ContextError(
                f"source {pattern!r} is not in the build context", hint=self._nearest(names)
            )
        return _source_of(names[-1] if names else "", place)

    def _source(self, path: list[str], place: _Place) -> Source:
        followed = self._follow(path)
        return _source_of(path[-1], place if followed is None else followed)

    def _nearest(self, names: list[str]) -> str | None:
        known = ["/".join(path) for path, _ in _below(self._root, [])]
        close = difflib.get_close_matches("/".join(names), known[:2_000], n=1, cutoff=0.6)
        if close:
            return f"did you mean {close[0]}?"
        return None if known else "the build context is empty"

    def _matching(
        self, place: _Place, path: list[str], patterns: list[str]
    ) -> Iterator[tuple[list[str], _Place]]:
        if not patterns:
            yield path, place
            return
        for name, child in place.children.items():
            if matches(patterns[0], name):
                yield from self._matching(child, [*path, name], patterns[1:])

    def _follow(self, names: list[str]) -> _Place | None:
        """The place of a name, links followed; what leads above the root stays at the root."""
        left = names[::-1]
        done: list[str] = []
        links = 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del done[-1:]
                continue
            place = self._at([*done, name])
            if place is None:
                return None
            if place.file is None or place.file.kind != "symlink":
                done.append(name)
                continue
            links += 1
            if links > LINKS_MAX:
                raise ContextError(f"source {'/'.join(names)!r} goes through {LINKS_MAX} links")
            target = place.file.target or ""
            if target.startswith("/"):
                done.clear()
            left.extend(target.split("/")[::-1])
        return self._at(done)

    def _at(self, names: Sequence[str]) -> _Place | None:
        place: _Place | None = self._root
        for name in names:
            if place is None:
                return None
            place = place.children.get(name)
        return place


def _below(place: _Place, path: list[str]) -> Iterator[tuple[list[str], _Place]]:
    """Everything below a place, parents first, by name."""
    stack = [(path, place)]
    while stack:
        at, current = stack.pop()
        if current is not place:
            yield at, current
        names = sorted(current.children, reverse=True)
        stack.extend(([*at, name], current.children[name]) for name in names)


def _source_of(name: str, place: _Place) -> Source:
    if not place.is_directory:
        assert place.file is not None
        return Source(name=name, is_directory=False, entries=(entry_of(place.file, ""),))
    entries = tuple(_entry(path, below) for path, below in _below(place, []))
    return Source(name=name, is_directory=True, entries=entries)


def _entry(path: list[str], place: _Place) -> Entry:
    joined = "/".join(path)
    if place.file is None:
        return Entry(path=joined, kind="dir", mode=0o755)
    return entry_of(place.file, joined)


def entry_of(file: SourceFile, path: str) -> Entry:
    """A file of a client as an entry at another path.

    Raises:
        InvalidError: a file without a digest, or a link without a target.
    """
    if file.kind == "file" and file.digest is None:
        raise InvalidError(f"file {file.path!r} has no digest")
    if file.kind == "symlink" and (not file.target or "\0" in file.target):
        raise InvalidError(f"link {file.path!r} has no target")
    return Entry(
        path=path,
        kind=file.kind,
        mode=file.mode,
        digest=file.digest if file.kind == "file" else None,
        size_bytes=file.size_bytes if file.kind == "file" else 0,
        target=file.target or "" if file.kind == "symlink" else "",
    )


def is_pattern(name: str) -> bool:
    """Whether a name holds characters that ``filepath.Match`` gives a meaning."""
    return any(character in "*?[\\" for character in name)


def matches(pattern: str, name: str) -> bool:
    """Go's ``filepath.Match`` for one name without slashes, in time len(pattern) times len(name).

    Raises:
        ContextError: the pattern has an unclosed ``[`` or ends in ``\\``.
    """
    tokens = _tokens(pattern)
    token, at = 0, 0
    star, resume = -1, 0
    while at < len(name):
        if token < len(tokens) and tokens[token] is _ANY:
            star, resume = token, at
            token += 1
        elif token < len(tokens) and _fits(tokens[token], name[at]):
            token, at = token + 1, at + 1
        elif star >= 0:
            # Let the last star take one character more and try again from there.
            resume += 1
            token, at = star + 1, resume
        else:
            return False
    return all(each is _ANY for each in tokens[token:])


@dataclass(frozen=True, slots=True)
class _Class:
    """Ranges of characters, perhaps negated; ``?`` is the negation of nothing."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False


_ANY = _Class(())
_ONE = _Class((), negated=True)


def _fits(token: _Class, character: str) -> bool:
    return any(low <= character <= high for low, high in token.ranges) != token.negated


def _tokens(pattern: str) -> list[_Class]:
    tokens: list[_Class] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "[":
            token, at = _character_class(pattern, at + 1)
            tokens.append(token)
            continue
        if character == "\\":
            at += 1
            character = _character(pattern, at)
            tokens.append(_Class(((character, character),)))
        elif character in "*?":
            tokens.append(_ANY if character == "*" else _ONE)
        else:
            tokens.append(_Class(((character, character),)))
        at += 1
    return tokens


def _character_class(pattern: str, at: int) -> tuple[_Class, int]:
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (pattern.startswith("]", at) and ranges):
        low, at = _class_character(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_character(pattern, at + 1)
        ranges.append((low, high))
    return _Class(tuple(ranges), negated), at + 1


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    character = _character(pattern, at)
    if character in "-]":
        raise ContextError(f"pattern {pattern!r} has an odd character class")
    if character == "\\":
        return _character(pattern, at + 1), at + 2
    return character, at + 1


def _character(pattern: str, at: int) -> str:
    if at >= len(pattern):
        raise ContextError(f"pattern {pattern!r} ends too early")
    return pattern[at]
