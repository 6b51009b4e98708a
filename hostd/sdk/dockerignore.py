"""Patterns that leave files out: the rules of ``.dockerignore``.

Source: Docker's documentation of the file and the behaviour of its pattern matcher. A pattern is
relative to the directory, whether or not it begins with ``/``; ``*`` and ``?`` stop at ``/``,
``**`` does not; a directory that matches takes everything below it along; of several matches the
last one counts, and ``!`` makes it keep the file.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Union

from hostd.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Sequence

PATTERNS_MAX = 10_000


class FilePatternMatcher:
    """Tells whether a relative path is left out; ``~matcher`` keeps exactly those instead."""

    def __init__(self, *patterns: str) -> None:
        if len(patterns) > PATTERNS_MAX:
            raise InvalidError(f"{len(patterns)} ignore patterns, the limit is {PATTERNS_MAX}")
        self._rules = [rule for rule in map(_rule, patterns) if rule is not None]
        self._inverted = False

    @classmethod
    def from_file(cls, path: Union[str, Path]) -> FilePatternMatcher:
        """The patterns of a file, one on a line; ``#`` begins a comment."""
        text = Path(path).read_text(encoding="utf-8-sig")
        return cls(*(line for line in text.splitlines() if not line.startswith("#")))

    @property
    def may_prune(self) -> bool:
        """Whether nothing below an ignored directory can be kept."""
        return not self._inverted and not any(keep for keep, _ in self._rules)

    def __call__(self, path: PurePath) -> bool:
        """Whether the file is left out; the path is relative to the directory."""
        text = path.as_posix()
        ignored = False
        for keep, regex in self._rules:
            # A rule that could change nothing is not tried.
            if keep == ignored and regex.fullmatch(text) is not None:
                ignored = not keep
        return ignored != self._inverted

    def __invert__(self) -> FilePatternMatcher:
        twin = FilePatternMatcher()
        twin._rules = self._rules
        twin._inverted = not self._inverted
        return twin


def matcher_of(patterns: Sequence[str]) -> FilePatternMatcher:
    """The matcher of a list of patterns.

    Raises:
        InvalidError: an element is not a text, or a pattern is malformed.
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidError(f"ignore pattern is {pattern!r}, expected a text")
    return FilePatternMatcher(*patterns)


def _rule(pattern: str) -> tuple[bool, re.Pattern[str]] | None:
    """Whether the pattern keeps, and the expression of the paths it is about; None for nothing."""
    pattern = pattern.strip()
    keep = pattern.startswith("!")
    if keep:
        pattern = pattern[1:].strip()
        if not pattern:
            raise InvalidError('ignore pattern "!" names no file')
    if not pattern:
        return None
    cleaned = posixpath.normpath(pattern.replace(os.sep, "/")).lstrip("/")
    if cleaned in ("", "."):
        return None
    try:
        return keep, re.compile(f"{_expression(cleaned)}(?:/.*)?", re.DOTALL)
    except re.error as error:
        raise InvalidError(f"ignore pattern {pattern!r}: {error}") from None


def _expression(pattern: str) -> str:
    parts = []
    at = 0
    while at < len(pattern):
        text, at = _element(pattern, at)
        parts.append(text)
    return "".join(parts)


def _element(pattern: str, at: int) -> tuple[str, int]:
    """The expression of the element that begins here, and where the next one begins."""
    if pattern.startswith("**/", at):
        return "(?:.*/)?", at + 3
    if pattern.startswith("**", at):
        return ".*", at + 2
    char = pattern[at]
    if char == "*":
        return "[^/]*", at + 1
    if char == "?":
        return "[^/]", at + 1
    if char == "[" and "]" in pattern[at + 2 :]:
        end = pattern.index("]", at + 2)
        inside = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
        return f"[{inside}]", end + 1
    if char == "\\" and at + 1 < len(pattern):
        return re.escape(pattern[at + 1]), at + 2
    return re.escape(char), at + 1
