r"""From physical lines of a Dockerfile to logical ones: comments, continuations, heredocs.

A logical line remembers where each of its pieces stood, so that an error in the middle of an
instruction of many lines names the right line and column. Rules, as BuildKit has them:

- Directives (``# escape=`` ``# syntax=`` ``# check=``) stand before anything else.
- A line that ends in the escape character (and spaces) goes on in the next one; comments and empty
  lines between are dropped; a doubled escape character does not continue.
- The lines after an instruction with ``<<NAME`` belong to it, until a line that is NAME.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hostd.errors import DockerfileError

LINE_CHARACTERS_MAX = 256 * 1024
"""Of one logical line; BuildKit has no limit, a shell's argument list ends at 128 KiB."""

_DIRECTIVE = re.compile(r"#[ \t]*([A-Za-z][A-Za-z0-9]*)[ \t]*=[ \t]*(.+?)[ \t]*")
_DIRECTIVES = ("escape", "syntax", "check")


def problem(text: str, *, line: int, column: int, hint: str | None = None) -> DockerfileError:
    """An error that says where; lines and columns count from 1."""
    return DockerfileError(
        f"Dockerfile:{line}:{column}: {text}", hint=hint, line=line, column=column
    )


@dataclass(frozen=True, slots=True)
class LogicalLine:
    """An instruction on one line, with the way back to where its characters stood."""

    text: str
    pieces: tuple[tuple[int, int, int], ...]
    """(offset in the text, line, column), ascending; the first offset is 0."""

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, both from 1."""
        at = bisect.bisect_right([piece[0] for piece in self.pieces], max(offset, 0)) - 1
        start, line, column = self.pieces[at]
        return line, column + offset - start

    def problem(self, text: str, *, offset: int = 0, hint: str | None = None) -> DockerfileError:
        """An error at a character of this line."""
        line, column = self.position(offset)
        return problem(text, line=line, column=column, hint=hint)


class Lines:
    """Reads logical lines one after the other; the caller asks for heredoc bodies in between."""

    def __init__(self, text: str) -> None:
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise problem("a NUL character", line=line, column=1)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            line = text.count("\n", 0, error.start) + 1
            raise problem("a character that UTF-8 does not have", line=line, column=1) from error
        normal = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._lines = normal.split("\n")
        self._at = 0
        self.escape = "\\"
        self._read_directives()

    def _read_directives(self) -> None:
        seen: set[str] = set()
        while self._at < len(self._lines):
            found = _DIRECTIVE.fullmatch(self._lines[self._at].strip(" \t"))
            name = found[1].lower() if found else ""
            if found is None or name not in _DIRECTIVES:
                return
            if name in seen:
                raise problem(f"directive {name} stands twice", line=self._at + 1, column=1)
            if name == "escape":
                self._set_escape(found[2])
            seen.add(name)
            self._at += 1

    def _set_escape(self, value: str) -> None:
        if value not in ("\\", "`"):
            raise problem(f"escape is {value!r}, expected \\ or `", line=self._at + 1, column=1)
        self.escape = value

    def __iter__(self) -> Iterator[LogicalLine]:
        while (line := self._next()) is not None:
            if line.text:
                yield line

    def _next(self) -> LogicalLine | None:
        while self._at < len(self._lines) and self._is_skipped(self._lines[self._at]):
            self._at += 1
        if self._at >= len(self._lines):
            return None
        parts: list[str] = []
        pieces: list[tuple[int, int, int]] = []
        length = 0
        goes_on = True
        while goes_on and self._at < len(self._lines):
            raw = self._lines[self._at]
            self._at += 1
            if parts and self._is_skipped(raw):
                continue
            kept, goes_on = self._continued(raw)
            indent = 0 if length else len(kept) - len(kept.lstrip(" \t"))
            pieces.append((length, self._at, indent + 1))
            parts.append(kept[indent:])
            length += len(parts[-1])
            if length > LINE_CHARACTERS_MAX:
                raise problem(
                    f"instruction is longer than {LINE_CHARACTERS_MAX} characters",
                    line=pieces[0][1],
                    column=1,
                )
        return LogicalLine(self._finished("".join(parts)), tuple(pieces))

    def _finished(self, text: str) -> str:
        """Without the marks of continuations that the end of the file cut off."""
        goes_on = True
        while goes_on:
            text, goes_on = self._continued(text)
        return text.rstrip(" \t")

    @staticmethod
    def _is_skipped(raw: str) -> bool:
        text = raw.strip(" \t")
        return not text or text.startswith("#")

    def _continued(self, raw: str) -> tuple[str, bool]:
        """The line without its continuation mark, and whether it has one."""
        text = raw.rstrip(" \t")
        if text.endswith(self.escape) and not text.endswith(self.escape * 2):
            return text[:-1], True
        return raw, False

    def heredoc(self, name: str, *, strip_tabs: bool, opened: LogicalLine) -> str:
        """The lines up to one that is ``name``; with ``strip_tabs`` tabs before it do not count."""
        start = self._at
        while self._at < len(self._lines):
            raw = self._lines[self._at]
            self._at += 1
            if (raw.lstrip("\t") if strip_tabs else raw) == name:
                body = self._lines[start : self._at - 1]
                return "".join(f"{line}\n" for line in body)
        raise opened.problem(
            f"heredoc {name} has no end", hint=f"end it with a line that is {name} and nothing else"
        )
