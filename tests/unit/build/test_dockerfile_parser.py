"""The Dockerfile parser: forms of instructions, heredocs, and errors with their place."""

import pytest

from hostd.build.dockerfile import parse
from hostd.build.lines import LINE_CHARACTERS_MAX
from hostd.errors import DockerfileError


def only(text):
    (instruction,) = parse(text).instructions
    return instruction


def test_keywords_are_upper_case_and_text_is_kept():
    instruction = only("  run  echo  'a  b' ")
    assert (instruction.keyword, instruction.text) == ("RUN", "echo  'a  b'")


def test_continuations_join_and_drop_comments_and_empty_lines():
    instruction = only("RUN a \\\n  # comment\n\n   && b \\   \n && c\n")
    assert instruction.text == "a    && b  && c"


def test_doubled_escape_does_not_continue():
    first, second = parse("RUN a \\\\\nRUN b").instructions
    assert (first.text, second.text) == ("a \\\\", "b")


def test_escape_directive_changes_the_continuation():
    script = parse("# escape=`\nRUN dir C:\\\nRUN a `\n b")
    assert [i.text for i in script.instructions] == ["dir C:\\", "a  b"]


def test_directives_are_only_read_before_anything_else():
    assert parse("# a comment\n# escape=`\nRUN a `").instructions[0].text == "a `"


def test_byte_order_mark_and_windows_line_ends_are_accepted():
    assert [i.text for i in parse("\ufeffRUN a \\\r\n b\r\nCMD c\r\n").instructions] == [
        "a  b",
        "c",
    ]


@pytest.mark.parametrize(
    ("text", "args"),
    [
        ('RUN ["a", "b c"]', ("a", "b c")),
        ("CMD []", ()),
        ("RUN [ -f x ] && y", None),
        ("RUN ['a']", None),
        ('RUN ["a", 1]', None),
        ("RUN " + "[" * 5000, None),
    ],
)
def test_exec_form_is_a_json_list_of_strings(text, args):
    assert only(text).args == args


def test_flags_are_read_before_the_text():
    instruction = only('COPY --chown=a:b --chmod=755 --link "x y" /z')
    assert [(f.name, f.value) for f in instruction.flags] == [
        ("chown", "a:b"),
        ("chmod", "755"),
        ("link", None),
    ]
    assert instruction.text == '"x y" /z'


def test_heredocs_belong_to_run_and_copy():
    script = parse("RUN <<EOF\na\n  b\nEOF\nCOPY <<-'X' <<Y /d/\n\t1\n\tX\n2\nY\nCMD c")
    run, copy, cmd = script.instructions
    assert [(d.name, d.expand, d.text) for d in run.heredocs] == [("EOF", True, "a\n  b\n")]
    assert [(d.name, d.expand, d.text) for d in copy.heredocs] == [
        ("X", False, "1\n"),
        ("Y", True, "2\n"),
    ]
    assert cmd.text == "c"


def test_arithmetic_and_quoted_arrows_are_no_heredocs():
    assert only("RUN echo $((1<<3)) '<<EOF'").heredocs == ()


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("FROM a\nRUNN b", 2, 1, "instruction 'RUNN' is not known", "did you mean RUN?"),
        ("FROM a\n  xyz", 2, 3, "'xyz' is not known", "known: "),
        ("RUN", 1, 1, "RUN needs an argument", None),
        ("RUN []", 1, 5, "RUN needs an argument", None),
        ("SHELL /bin/sh", 1, 1, "SHELL needs the JSON form", "write SHELL"),
        ("COPY --from=x a b", 1, 6, "COPY --from is not supported", "image of its own"),
        ("RUN --mount=type=cache x", 1, 5, "RUN --mount is not supported", None),
        ("COPY --chwon=x a b", 1, 6, "COPY has no flag --chwon", "did you mean --chown?"),
        ("COPY --link --link a b", 1, 13, "stands twice", None),
        ("FROM --x y", 1, 6, "FROM has no flag --x", "known: --platform"),
        ("RUN cat <<EOF\nx\n", 1, 1, "heredoc EOF has no end", "end it with a line"),
        ("# escape=x\nRUN a", 1, 1, "escape is 'x'", None),
        ("# escape=`\n# escape=`\nRUN a", 2, 1, "stands twice", None),
        ("RUN a\nRUN \0", 2, 1, "a NUL character", None),
        ("RUN a\nRUN \ud800", 2, 1, "UTF-8 does not have", None),
        ("RUN " + "x" * LINE_CHARACTERS_MAX, 1, 1, "longer than", None),
        ("RUN a\n" * 501, 501, 1, "more than 500 instructions", None),
    ],
)
def test_errors_name_line_column_and_what_was_meant(text, line, column, message, hint):
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    error = caught.value
    assert (error.fields["line"], error.fields["column"]) == (line, column)
    assert message in error.text
    assert error.text.startswith(f"Dockerfile:{line}:{column}: ")
    assert hint is None or (error.hint is not None and hint in error.hint)


def test_positions_survive_continuations():
    instruction = only("# comment\nENV a=1 \\\n  # between\n    b=2")
    words = instruction.words(escape="\\")
    assert instruction.line.position(words[1].offset) == (4, 5)


def test_printing_and_parsing_again_gives_the_same():
    text = (
        "# escape=`\nFROM a AS b\ncopy --chown=x <<`EOF /a\n$x\nEOF\n"
        'RUN <<-E `\n && x\n\tz\n\tE\nCMD ["a"]\n'
    )
    script = parse(text)
    assert parse(str(script)) == script
