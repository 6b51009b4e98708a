r"""The parser of Dockerfiles: text in, instructions out; nothing is expanded or looked up here.

Understood: FROM, RUN (shell form, exec form, heredocs), COPY and ADD (with heredocs, ``--chown``,
``--chmod``, ``--link``), ENV, ARG, WORKDIR, USER, ENTRYPOINT, CMD, LABEL, EXPOSE, SHELL, comments,
continuation lines and the escape directive. Tolerated with a warning, because they change nothing
here: STOPSIGNAL, HEALTHCHECK, VOLUME, MAINTAINER, ONBUILD. Whatever else is met raises
``DockerfileError`` with line and column, never another exception.

``parse(str(parse(text)))`` gives the same instructions.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hostd.build.expansion import ExpansionError, Word, end_of_word, expand, split_words
from hostd.build.lines import Lines, LogicalLine
from hostd.errors import DockerfileError

INSTRUCTIONS_MAX = 500
"""As many as a recipe may have steps."""

TOLERATED = {
    "STOPSIGNAL": "containers are stopped with SIGTERM",
    "HEALTHCHECK": "the daemon watches containers itself",
    "VOLUME": "volumes are attached to functions, not to images",
    "MAINTAINER": "use LABEL",
    "ONBUILD": "triggers are not kept",
}
"""Instructions that are read and have no effect, and why."""

_FLAGS: dict[str, frozenset[str]] = {
    "FROM": frozenset({"platform"}),
    "COPY": frozenset({"chown", "chmod", "link"}),
    "ADD": frozenset({"chown", "chmod", "link"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_LATER_FLAGS: dict[str, frozenset[str]] = {
    "COPY": frozenset({"from", "parents", "exclude"}),
    "ADD": frozenset({"keep-git-dir", "checksum", "exclude", "unpack"}),
    "RUN": frozenset({"mount", "network", "security", "device"}),
}
"""Flags of BuildKit that this version does not have: the error says so."""

INSTRUCTIONS = frozenset(
    {
        "FROM",
        "RUN",
        "COPY",
        "ADD",
        "ENV",
        "ARG",
        "WORKDIR",
        "USER",
        "ENTRYPOINT",
        "CMD",
        "LABEL",
        "EXPOSE",
        "SHELL",
    }
) | frozenset(TOLERATED)
_JSON_FORM = frozenset({"RUN", "CMD", "ENTRYPOINT", "SHELL", "COPY", "ADD", "VOLUME"})
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})
_MAY_BE_EMPTY = frozenset({"CMD", "ENTRYPOINT"})

_KEYWORD = re.compile(r"([^ \t]+)[ \t]*")
_FLAG = re.compile(r"--([a-z][a-z-]*)(=?)")
_LEADING_TABS = re.compile(r"(?m)^\t+")
_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)")


@dataclass(frozen=True, slots=True)
class Flag:
    """``--name`` or ``--name=value``; the value as it stands."""

    name: str
    value: str | None
    offset: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Heredoc:
    """Lines that belong to an instruction."""

    name: str
    expand: bool
    """Whether variables in it are for us: not when a part of the name was quoted."""
    strip_tabs: bool
    body: str
    offset: int = field(compare=False)

    @property
    def text(self) -> str:
        """The lines as they are meant: without leading tabs after ``<<-``."""
        return _LEADING_TABS.sub("", self.body) if self.strip_tabs else self.body


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its keyword in upper case, its flags, and the rest of the line as text."""

    keyword: str
    flags: tuple[Flag, ...]
    text: str
    args: tuple[str, ...] | None
    """The exec (JSON) form, when it is one."""
    heredocs: tuple[Heredoc, ...]
    line: LogicalLine = field(compare=False)
    offset: int = field(compare=False)
    """Where ``text`` begins in the logical line."""

    def __str__(self) -> str:
        flags = [f"--{f.name}" if f.value is None else f"--{f.name}={f.value}" for f in self.flags]
        head = " ".join([self.keyword, *flags, self.text]).rstrip(" ")
        return "\n".join([head, *(f"{doc.body}{doc.name}" for doc in self.heredocs)])

    def flag(self, name: str) -> str | None:
        """The value of a flag, or None when it is not given."""
        return next((flag.value for flag in self.flags if flag.name == name), None)

    def words(self, *, escape: str) -> list[Word]:
        """The words of the text, quotes and all; their offsets are those of the logical line."""
        if self.args is not None:
            return [Word(arg, self.offset) for arg in self.args]
        try:
            found = split_words(self.text, escape=escape)
        except ExpansionError as error:
            raise self.problem(error.text, offset=self.offset + error.offset) from error
        return [Word(word.text, self.offset + word.offset) for word in found]

    def problem(
        self, text: str, *, offset: int | None = None, hint: str | None = None
    ) -> DockerfileError:
        """An error in this instruction: at an offset of its logical line, or at its keyword."""
        return self.line.problem(text, offset=offset or 0, hint=hint)


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed Dockerfile."""

    instructions: tuple[Instruction, ...]
    escape: str = "\\"

    def __str__(self) -> str:
        directive = [] if self.escape == "\\" else [f"# escape={self.escape}"]
        return "".join(f"{line}\n" for line in [*directive, *map(str, self.instructions)])


def parse(text: str) -> Script:
    """Parse a Dockerfile.

    Raises:
        DockerfileError: with ``line`` and ``column`` from 1, and what is expected instead.
    """
    lines = Lines(text)
    instructions: list[Instruction] = []
    for line in lines:
        if len(instructions) == INSTRUCTIONS_MAX:
            raise line.problem(f"more than {INSTRUCTIONS_MAX} instructions")
        instructions.append(_instruction(line, lines))
    return Script(tuple(instructions), lines.escape)


def _instruction(line: LogicalLine, lines: Lines) -> Instruction:
    found = _KEYWORD.match(line.text)
    assert found is not None, "a logical line is never empty"
    keyword = found[1].upper()
    if keyword not in INSTRUCTIONS:
        raise line.problem(f"instruction {found[1][:40]!r} is not known", hint=_nearest(keyword))
    flags, offset = _flags(keyword, line, found.end(), lines.escape)
    text = line.text[offset:]
    args = _json_form(text) if keyword in _JSON_FORM else None
    if not text and keyword not in TOLERATED:
        raise line.problem(f"{keyword} needs an argument")
    if keyword == "SHELL" and args is None:
        raise line.problem("SHELL needs the JSON form", hint='write SHELL ["/bin/bash", "-c"]')
    if args == () and keyword not in _MAY_BE_EMPTY:
        raise line.problem(f"{keyword} needs an argument", offset=offset)
    heredocs: tuple[Heredoc, ...] = ()
    if keyword in _WITH_HEREDOCS and args is None:
        heredocs = tuple(_heredocs(line, offset, lines))
    return Instruction(keyword, flags, text, args, heredocs, line, offset)


def _nearest(keyword: str) -> str:
    close = difflib.get_close_matches(keyword, sorted(INSTRUCTIONS), n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(sorted(INSTRUCTIONS - frozenset(TOLERATED)))}"


def _flags(
    keyword: str, line: LogicalLine, offset: int, escape: str
) -> tuple[tuple[Flag, ...], int]:
    """The flags behind the keyword, and where the text after them begins."""
    flags: list[Flag] = []
    known = _FLAGS.get(keyword, frozenset())
    later = _LATER_FLAGS.get(keyword, frozenset())
    while (known or later) and line.text.startswith("--", offset):
        try:
            end = end_of_word(line.text, offset, escape=escape)
        except ExpansionError as error:
            raise line.problem(error.text, offset=error.offset) from error
        found = _FLAG.match(line.text, offset, end)
        if found is None or (not found[2] and found.end() != end):
            raise line.problem(f"{line.text[offset:end][:40]!r} is not a flag", offset=offset)
        if found[1] not in known:
            raise _unknown_flag(keyword, found[1], line, offset)
        value = line.text[found.end() : end] if found[2] else None
        if any(flag.name == found[1] for flag in flags):
            raise line.problem(f"flag --{found[1]} stands twice", offset=offset)
        flags.append(Flag(found[1], value, offset))
        offset = end + len(line.text[end:]) - len(line.text[end:].lstrip(" \t"))
    return tuple(flags), offset


def _unknown_flag(keyword: str, name: str, line: LogicalLine, offset: int) -> DockerfileError:
    if name in _LATER_FLAGS.get(keyword, frozenset()):
        hint = "build the other stage as an image of its own" if name == "from" else None
        return line.problem(
            f"{keyword} --{name} is not supported by this version", offset=offset, hint=hint
        )
    known = sorted(_FLAGS.get(keyword, frozenset()))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean --{close[0]}?" if close else None
    if hint is None and known:
        hint = "known: " + ", ".join(f"--{each}" for each in known)
    return line.problem(f"{keyword} has no flag --{name}", offset=offset, hint=hint)


def _json_form(text: str) -> tuple[str, ...] | None:
    """The list of strings that the text is; anything else is the shell form, as Docker decides."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    if any("\0" in item or _is_lone_surrogate(item) for item in value):
        return None
    return tuple(value)


def _is_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _heredocs(line: LogicalLine, offset: int, lines: Lines) -> Iterator[Heredoc]:
    """Read the bodies of all ``<<NAME`` words of the text, in order."""
    for word in _loose_words(line.text[offset:], lines.escape):
        found = _HEREDOC.fullmatch(word.text)
        if found is None:
            continue
        try:
            name = expand(found[2], {}, escape=lines.escape)
        except ExpansionError:
            continue
        if not name or "\n" in name:
            continue
        strip_tabs = bool(found[1])
        body = lines.heredoc(name, strip_tabs=strip_tabs, opened=line)
        yield Heredoc(name, name == found[2], strip_tabs, body, offset + word.offset)


def _loose_words(text: str, escape: str) -> list[Word]:
    try:
        return split_words(text, escape=escape)
    except ExpansionError:
        # A shell command may hold quotes in ways that are not ours to judge; the shell will.
        return []
