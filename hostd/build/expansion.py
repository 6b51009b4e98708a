r"""Words of a Dockerfile: how they are split, unquoted and expanded.

The rules are those of the Dockerfile reference ("Environment replacement"), and of a POSIX shell
where the reference is silent:

- ``'…'`` is literal; in ``"…"`` variables are expanded and the escape character protects only
  ``"``, ``$`` and itself; elsewhere it protects any character. Quotes disappear.
- ``$name``, ``${name}``, ``${name:-word}``, ``${name:+word}``, ``${name:?word}``; the last three
  also without the colon: then only whether the name is set counts. ``word`` is expanded itself.
- A name that is not set becomes nothing; a ``$`` before anything else stays.

Nothing here knows instructions or lines; errors carry an offset into the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EXPANDED_CHARACTERS_MAX = 64 * 1024
"""One word may not grow beyond this: ``${A}${A}`` repeated doubles a value with each line."""
NESTING_MAX = 50
"""Depth of ``${a:-${b:-…}}``; nobody writes more than three."""

_SPACE = " \t"
_NAME_START = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_NAME = _NAME_START | frozenset("0123456789")
_SPECIAL = frozenset("@*#?-!0123456789")
"""Positional and special parameters of a shell: always unset here."""


class ExpansionError(Exception):
    """A word cannot be understood; ``offset`` is where, counted in characters from 0."""

    def __init__(self, text: str, *, offset: int) -> None:
        super().__init__(text)
        self.text = text
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it stands in the text, quotes and all."""

    text: str
    offset: int


def split_words(text: str, *, escape: str = "\\") -> list[Word]:
    """Split at spaces and tabs outside quotes.

    Raises:
        ExpansionError: a quote is not closed.
    """
    words: list[Word] = []
    position = 0
    while position < len(text):
        if text[position] in _SPACE:
            position += 1
            continue
        end = end_of_word(text, position, escape=escape)
        words.append(Word(text[position:end], position))
        position = end
    return words


def end_of_word(text: str, start: int, *, escape: str = "\\") -> int:
    """Where the word that starts here ends: at a space outside quotes, or at the end.

    Raises:
        ExpansionError: a quote is not closed.
    """
    position = start
    while position < len(text) and text[position] not in _SPACE:
        character = text[position]
        if character == escape:
            position += 2
        elif character in "'\"":
            position = _end_of_quote(text, position, escape) + 1
        else:
            position += 1
    return min(position, len(text))


def _end_of_quote(text: str, start: int, escape: str) -> int:
    quote = text[start]
    position = start + 1
    while position < len(text):
        if text[position] == quote:
            return position
        protects = quote == '"' and text[position] == escape
        position += 2 if protects else 1
    raise ExpansionError(f"quote {quote} is not closed", offset=start)


def expand(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """Expand variables and remove quotes.

    Raises:
        ExpansionError: an unclosed quote or brace, an unknown operator, a ``:?`` that speaks, or a
            result of more than EXPANDED_CHARACTERS_MAX characters.
    """
    return _Expansion(text, variables, escape).until(None)


def expand_body(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """Expand variables in the lines of a heredoc: quotes stay, ``\\$`` is a plain ``$``.

    Raises:
        ExpansionError: as for ``expand``.
    """
    return _Expansion(text, variables, escape, keep_quotes=True).until(None)


def quote(text: str) -> str:
    """Write any text as a word that ``expand`` gives back unchanged."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


class _Expansion:
    """One pass over a text; the position only goes forward."""

    def __init__(
        self, text: str, variables: Mapping[str, str], escape: str, *, keep_quotes: bool = False
    ) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._keep_quotes = keep_quotes
        self._at = 0
        self._depth = 0
        self._grown = 0

    def until(self, stop: str | None) -> str:
        """Expand up to the character ``stop`` (which is eaten), or to the end when it is None."""
        opened = self._at
        parts: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == stop:
                self._at += 1
                return "".join(parts)
            parts.append(self._piece(character))
        if stop is not None:
            raise ExpansionError(f"{stop} is missing", offset=max(opened - 1, 0))
        return "".join(parts)

    def _piece(self, character: str) -> str:
        if self._keep_quotes and character in f"'\"{self._escape}":
            return self._in_body(character)
        if character == "'":
            return self._single_quoted()
        if character == '"':
            return self._double_quoted()
        if character == "$":
            return self._dollar()
        if character == self._escape:
            self._at += 2
            return self._text[self._at - 1 : self._at]
        self._at += 1
        return character

    def _in_body(self, character: str) -> str:
        following = self._text[self._at + 1 : self._at + 2]
        if character == self._escape and following in ("$", self._escape):
            self._at += 2
            return following
        self._at += 1
        return character

    def _single_quoted(self) -> str:
        start = self._at
        end = _end_of_quote(self._text, start, self._escape)
        self._at = end + 1
        return self._text[start + 1 : end]

    def _double_quoted(self) -> str:
        start = self._at
        self._at += 1
        parts: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == '"':
                self._at += 1
                return "".join(parts)
            if character == "$":
                parts.append(self._dollar())
            elif character == self._escape:
                parts.append(self._escaped_in_quotes())
            else:
                parts.append(character)
                self._at += 1
        raise ExpansionError('quote " is not closed', offset=start)

    def _escaped_in_quotes(self) -> str:
        following = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if following in ('"', "$", self._escape):
            return following
        return self._escape + following

    def _dollar(self) -> str:
        start = self._at
        self._at += 1
        following = self._text[self._at : self._at + 1]
        if following == "{":
            return self._counted(self._braces(start), start)
        if following in _SPECIAL:
            self._at += 1
            return ""
        name = self._name()
        if not name:
            return "$"
        return self._counted(self._variables.get(name, ""), start)

    def _counted(self, value: str, start: int) -> str:
        self._grown += len(value)
        if self._grown > EXPANDED_CHARACTERS_MAX:
            raise ExpansionError(
                f"expansion is longer than {EXPANDED_CHARACTERS_MAX} characters", offset=start
            )
        return value

    def _name(self) -> str:
        start = self._at
        if self._text[start : start + 1] not in _NAME_START:
            return ""
        while self._at < len(self._text) and self._text[self._at] in _NAME:
            self._at += 1
        return self._text[start : self._at]

    def _braces(self, start: int) -> str:
        self._at += 1
        name = self._name() or self._special_name()
        if not name:
            raise ExpansionError("${ needs the name of a variable", offset=start)
        if self._at >= len(self._text):
            raise ExpansionError("} is missing", offset=start)
        operator = self._operator(start)
        value = self._variables.get(name)
        if not operator:
            return value or ""
        self._depth += 1
        if self._depth > NESTING_MAX:
            raise ExpansionError(f"more than {NESTING_MAX} braces in each other", offset=start)
        word = self.until("}")
        self._depth -= 1
        return self._choose(name, value, operator, word, start)

    def _special_name(self) -> str:
        following = self._text[self._at : self._at + 1]
        if following in _SPECIAL:
            self._at += 1
            return following
        return ""

    def _operator(self, start: int) -> str:
        """Eat ``:-``, ``:+``, ``:?`` or one of them without the colon; "" for a closing brace."""
        if self._text[self._at] == "}":
            self._at += 1
            return ""
        colon = ":" if self._text[self._at] == ":" else ""
        mark = self._text[self._at + len(colon) : self._at + len(colon) + 1]
        if not mark or mark not in "-+?":
            raise ExpansionError(
                f"${{…{colon}{mark} is not supported: known are :- :+ :? and - + ?", offset=start
            )
        self._at += len(colon) + 1
        return colon + mark

    def _choose(self, name: str, value: str | None, operator: str, word: str, start: int) -> str:
        has_value = bool(value) if operator.startswith(":") else value is not None
        match operator[-1]:
            case "-":
                return (value or "") if has_value else word
            case "+":
                return word if has_value else ""
            case _:
                if not has_value:
                    raise ExpansionError(f"{name}: {word or 'is not set'}", offset=start)
                return value or ""
