"""Walks the instructions of a Dockerfile, keeps the scopes of ARG and ENV, and plans the steps.

Scopes (Dockerfile reference, "ARG"): arguments before FROM are for FROM lines; a stage sees those
that it declares again. ENV hides an ARG of the same name. ARG values are environment of RUN. In one
instruction all words see the variables as they were before it.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hostd.build.copying import Context, ContextError, CopyWork, Entry, Source
from hostd.build.dockerfile import TOLERATED, Heredoc, Instruction, Script
from hostd.build.expansion import ExpansionError, Word, expand, expand_body
from hostd.build.steps import Planner, RunWork
from hostd.errors import DockerfileError, InvalidError

PREDEFINED_ARGS = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
"""Arguments that need no ARG and are not part of a layer's key (Dockerfile reference)."""

_BEGIN = "begin with FROM debian:bookworm-slim"
_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?", re.IGNORECASE)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Base:
    """The image that a Dockerfile starts from, and what follows its FROM."""

    image: str
    instruction: Instruction
    rest: tuple[Instruction, ...]
    arguments: Mapping[str, str]
    """Values of the arguments before FROM."""


def base_of(script: Script, build_args: Mapping[str, str]) -> Base:
    """Find FROM and expand the image it names.

    Raises:
        DockerfileError: there is no FROM, something else stands before it, or it is one that this
            version does not have.
    """
    arguments = platform_arguments()
    for number, instruction in enumerate(script.instructions):
        if instruction.keyword == "ARG":
            for name, value in _arguments(instruction, arguments, script.escape):
                chosen = build_args.get(name, value)
                if chosen is not None:
                    arguments[name] = chosen
            continue
        if instruction.keyword != "FROM":
            raise instruction.problem(
                f"{instruction.keyword} stands before FROM",
                hint=_BEGIN,
            )
        rest = script.instructions[number + 1 :]
        return Base(_image(instruction, arguments, script.escape), instruction, rest, arguments)
    raise DockerfileError("Dockerfile:1:1: there is no FROM", hint=_BEGIN, line=1, column=1)


def platform_arguments() -> dict[str, str]:
    """BuildKit's automatic arguments, for this machine."""
    machine = platform.machine()
    architecture = _ARCHITECTURES.get(machine, machine)
    values = {"PLATFORM": f"linux/{architecture}", "OS": "linux", "ARCH": architecture}
    return {
        f"{side}{name}": value for side in ("TARGET", "BUILD") for name, value in values.items()
    } | {"TARGETVARIANT": "", "BUILDVARIANT": ""}


def _image(instruction: Instruction, arguments: Mapping[str, str], escape: str) -> str:
    words = [
        _expanded(instruction, word, arguments, escape) for word in instruction.words(escape=escape)
    ]
    is_named = len(words) == 3 and words[1].upper() == "AS"
    if len(words) != 1 and not is_named:
        raise instruction.problem("FROM needs one image", hint="write FROM image [AS name]")
    if not words[0]:
        raise instruction.problem("FROM names an image that is empty after expansion")
    wanted = instruction.flag("platform")
    if wanted is not None:
        _check_platform(instruction, _expand_flag(instruction, wanted, arguments, escape))
    return words[0]


def _check_platform(instruction: Instruction, wanted: str) -> None:
    own = platform_arguments()["TARGETPLATFORM"]
    if wanted not in (own, "linux"):
        raise instruction.problem(f"platform is {wanted}, this host builds for {own} only")


def _expanded(
    instruction: Instruction, word: Word, variables: Mapping[str, str], escape: str
) -> str:
    try:
        return expand(word.text, variables, escape=escape)
    except ExpansionError as error:
        raise instruction.problem(error.text, offset=word.offset + error.offset) from error


def _expand_flag(
    instruction: Instruction, value: str, variables: Mapping[str, str], escape: str
) -> str:
    offset = next(flag.offset for flag in instruction.flags if flag.value == value)
    return _expanded(instruction, Word(value, offset), variables, escape)


def _arguments(
    instruction: Instruction, variables: Mapping[str, str], escape: str
) -> list[tuple[str, str | None]]:
    """The names that an ARG declares, with their default values."""
    found: list[tuple[str, str | None]] = []
    for word in instruction.words(escape=escape):
        text = _expanded(instruction, word, variables, escape)
        name, equals, value = text.partition("=")
        if not name:
            raise instruction.problem("ARG needs a name before =", offset=word.offset)
        found.append((name, value if equals else None))
    return found


def plan_instructions(
    instructions: Sequence[Instruction],
    planner: Planner,
    *,
    context: Context,
    build_args: Mapping[str, str],
    outer: Mapping[str, str],
    escape: str,
) -> None:
    """Append the steps of the instructions after FROM to the planner.

    Args:
        outer: values of the arguments before FROM, the platform's included.

    Raises:
        DockerfileError: with line and column.
    """
    stage = _Stage(planner, context, build_args, outer, escape)
    for instruction in instructions:
        stage.step(instruction)
    stage.warn_unused()


class _Stage:
    """The state between two instructions: declared arguments and the planner's configuration."""

    def __init__(
        self,
        planner: Planner,
        context: Context,
        build_args: Mapping[str, str],
        outer: Mapping[str, str],
        escape: str,
    ) -> None:
        self._planner = planner
        self._context = context
        self._build_args = build_args
        self._outer = outer
        self._escape = escape
        self._declared: set[str] = set(outer)
        self._arguments: dict[str, str] = {}
        self._handlers: dict[str, Callable[[Instruction], None]] = {
            "FROM": self._from,
            "RUN": self._run,
            "COPY": self._copy,
            "ADD": self._copy,
            "ENV": self._env,
            "ARG": self._arg,
            "WORKDIR": self._workdir,
            "USER": self._user,
            "ENTRYPOINT": self._entrypoint,
            "CMD": self._cmd,
            "LABEL": self._label,
            "EXPOSE": self._expose,
            "SHELL": self._shell,
        }

    def step(self, instruction: Instruction) -> None:
        """Plan one instruction."""
        handler = self._handlers.get(instruction.keyword, self._tolerated)
        try:
            handler(instruction)
        except DockerfileError:
            raise
        except InvalidError as error:
            raise instruction.problem(error.text, hint=error.hint) from error

    def warn_unused(self) -> None:
        """Note build arguments that no ARG took."""
        unused = sorted(set(self._build_args) - self._declared - PREDEFINED_ARGS)
        if unused:
            names = ", ".join(unused)
            self._planner.add("ARG", warning=f"build arguments that no ARG declares: {names}")

    def _add(self, instruction: Instruction, **more: object) -> None:
        text = str(instruction).split("\n", 1)[0]
        position = instruction.line.position(0)
        self._planner.add(text, position=position, **more)  # type: ignore[arg-type]  # keywords of add

    @property
    def _variables(self) -> dict[str, str]:
        return {**self._arguments, **self._planner.config.env}

    def _text(self, instruction: Instruction) -> str:
        word = Word(instruction.text, instruction.offset)
        return _expanded(instruction, word, self._variables, self._escape)

    def _words(self, instruction: Instruction) -> list[str]:
        variables = self._variables
        return [
            _expanded(instruction, word, variables, self._escape)
            for word in instruction.words(escape=self._escape)
        ]

    def _from(self, instruction: Instruction) -> None:
        raise instruction.problem(
            "builds of several stages are not supported by this version",
            hint="build the other stage as an image of its own",
        )

    def _tolerated(self, instruction: Instruction) -> None:
        keyword = instruction.keyword
        self._add(instruction, warning=f"{keyword} has no effect: {TOLERATED[keyword]}")

    # --- RUN --------------------------------------------------------------------------------------

    def _run(self, instruction: Instruction) -> None:
        args, script = self._command(instruction)
        declared = {k: v for k, v in self._arguments.items() if k not in self._planner.config.env}
        unkeyed = {
            name: value
            for name, value in self._build_args.items()
            if name in PREDEFINED_ARGS and name not in self._arguments
        }
        work = RunWork(
            args=args,
            script=script,
            build_args=tuple(sorted(declared.items())),
            unkeyed=tuple(sorted(unkeyed.items())),
        )
        self._add(instruction, work=work)

    def _command(self, instruction: Instruction) -> tuple[tuple[str, ...], bytes | None]:
        if instruction.args is not None:
            return instruction.args, None
        heredocs = instruction.heredocs
        if len(heredocs) == 1 and len(instruction.words(escape=self._escape)) == 1:
            # RUN <<EOF alone: the lines are the script.
            text = heredocs[0].text
            if text.startswith("#!"):
                return (), text.encode()
            return self._planner.shell_args(text), None
        # The shell knows heredocs itself.
        lines = [instruction.text, *(f"{doc.body}{doc.name}" for doc in heredocs)]
        return self._planner.shell_args("\n".join(lines)), None

    # --- COPY and ADD -----------------------------------------------------------------------------

    def _copy(self, instruction: Instruction) -> None:
        words = self._words(instruction)
        if len(words) < 2:
            raise instruction.problem(f"{instruction.keyword} needs sources and a destination")
        destination = words[-1]
        into = destination.endswith(("/", "/.")) or destination == "."
        heredocs = self._heredoc_sources(instruction)
        sources: list[Source] = []
        named = instruction.words(escape=self._escape)[:-1]
        for word, text in zip(named, words[:-1], strict=True):
            if word.offset in heredocs and instruction.args is None:
                sources.append(heredocs[word.offset])
            else:
                sources += self._matched(instruction, text, word.offset)
        if len(named) > 1 and not into:
            raise instruction.problem(
                f"several sources need a directory as destination, not {destination!r}",
                hint=f"write {destination}/",
            )
        work = CopyWork(
            sources=tuple(sources),
            destination=self._planner.absolute(destination),
            into_directory=into,
            owner=self._flag(instruction, "chown"),
            mode=self._mode(instruction),
            unpack=instruction.keyword == "ADD",
        )
        warning = "" if sources else "no file matches: nothing is copied"
        self._add(instruction, work=work, warning=warning)

    def _heredoc_sources(self, instruction: Instruction) -> dict[int, Source]:
        return {
            doc.offset: Source(
                name=_base_name(instruction, doc),
                is_directory=False,
                entries=(self._heredoc_entry(instruction, doc),),
            )
            for doc in instruction.heredocs
        }

    def _heredoc_entry(self, instruction: Instruction, doc: Heredoc) -> Entry:
        text = doc.text
        if doc.expand:
            try:
                text = expand_body(text, self._variables, escape=self._escape)
            except ExpansionError as error:
                raise instruction.problem(
                    f"heredoc {doc.name}: {error.text}", offset=doc.offset
                ) from error
        data = text.encode()
        return Entry(path="", data=data, size_bytes=len(data))

    def _matched(self, instruction: Instruction, text: str, offset: int) -> list[Source]:
        if instruction.keyword == "ADD" and re.match(r"[a-z][a-z0-9+.-]*://|git@", text):
            raise instruction.problem(
                f"ADD from {text[:60]!r} is not supported by this version: only local files",
                offset=offset,
                hint="download it in a RUN",
            )
        try:
            return self._context.match(text)
        except ContextError as error:
            raise instruction.problem(error.text, offset=offset, hint=error.hint) from error

    def _flag(self, instruction: Instruction, name: str) -> str | None:
        value = instruction.flag(name)
        if value is None:
            return None
        text = _expand_flag(instruction, value, self._variables, self._escape)
        if not text:
            raise instruction.problem(f"--{name} is empty")
        return text

    def _mode(self, instruction: Instruction) -> int | None:
        text = self._flag(instruction, "chmod")
        if text is None:
            return None
        if not re.fullmatch(r"[0-7]{1,5}", text) or int(text, 8) > 0o7777:
            raise instruction.problem(f"--chmod is {text!r}, expected an octal number up to 7777")
        return int(text, 8)

    # --- configuration ----------------------------------------------------------------------------

    def _pairs(self, instruction: Instruction) -> dict[str, str]:
        """``name=value …``, or the old form ``name value`` with one name for the whole line."""
        words = instruction.words(escape=self._escape)
        if "=" not in words[0].text:
            return self._old_pair(instruction, words)
        pairs: dict[str, str] = {}
        variables = self._variables
        for word in words:
            name, equals, value = word.text.partition("=")
            if not equals:
                raise instruction.problem(f"{word.text[:40]!r} has no =", offset=word.offset)
            key = _expanded(instruction, Word(name, word.offset), variables, self._escape)
            if not key:
                raise instruction.problem("there is no name before =", offset=word.offset)
            behind = Word(value, word.offset + len(name) + 1)
            pairs[key] = _expanded(instruction, behind, variables, self._escape)
        return pairs

    def _old_pair(self, instruction: Instruction, words: Sequence[Word]) -> dict[str, str]:
        name = words[0]
        value = instruction.text[len(name.text) :]
        if not value:
            raise instruction.problem(
                f"{instruction.keyword} {name.text} has no value", hint=f"write {name.text}=value"
            )
        stripped = value.lstrip(" \t")
        behind = Word(stripped, len(instruction.line.text) - len(stripped))
        key = _expanded(instruction, name, self._variables, self._escape)
        if not key:
            raise instruction.problem("there is no name before the value", offset=name.offset)
        return {key: _expanded(instruction, behind, self._variables, self._escape)}

    def _env(self, instruction: Instruction) -> None:
        self._planner.set_env(self._pairs(instruction))
        self._add(instruction)

    def _label(self, instruction: Instruction) -> None:
        self._planner.set_labels(self._pairs(instruction))
        self._add(instruction)

    def _arg(self, instruction: Instruction) -> None:
        for name, default in _arguments(instruction, self._variables, self._escape):
            self._declared.add(name)
            value = default if default is not None else self._outer.get(name)
            value = self._build_args.get(name, value)
            if value is not None:
                self._arguments[name] = value
        self._add(instruction)

    def _workdir(self, instruction: Instruction) -> None:
        path = self._text(instruction)
        if not path:
            raise instruction.problem("WORKDIR is empty after expansion")
        self._add(instruction, work=self._planner.set_workdir(path))

    def _user(self, instruction: Instruction) -> None:
        self._planner.set_user(self._text(instruction))
        self._add(instruction)

    def _exec_form(self, instruction: Instruction) -> tuple[str, ...]:
        if instruction.args is not None:
            return instruction.args
        return self._planner.shell_args(instruction.text)

    def _entrypoint(self, instruction: Instruction) -> None:
        self._planner.set_entrypoint(self._exec_form(instruction))
        self._add(instruction)

    def _cmd(self, instruction: Instruction) -> None:
        self._planner.set_cmd(self._exec_form(instruction))
        self._add(instruction)

    def _expose(self, instruction: Instruction) -> None:
        ports = [port for text in self._words(instruction) for port in text.split()]
        for port in ports:
            if not _PORT.fullmatch(port):
                raise instruction.problem(f"port is {port!r}, expected number[-number][/protocol]")
        self._planner.set_exposed(ports)
        self._add(instruction)

    def _shell(self, instruction: Instruction) -> None:
        assert instruction.args is not None, "the parser asks for the JSON form"
        self._planner.set_shell(instruction.args)
        self._add(instruction)


def _base_name(instruction: Instruction, doc: Heredoc) -> str:
    if doc.name in (".", "..") or "/" in doc.name:
        raise instruction.problem(
            f"heredoc {doc.name!r} cannot be the name of a file", offset=doc.offset
        )
    return doc.name
