"""Words of a Dockerfile: splitting, quotes, variables."""

import pytest

from hostd.build.expansion import (
    EXPANDED_CHARACTERS_MAX,
    ExpansionError,
    expand,
    expand_body,
    quote,
    split_words,
)

VARIABLES = {"A": "alpha", "EMPTY": "", "B_2": "beta"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$A", "alpha"),
        ("x${A}y", "xalphay"),
        ("$A-$B_2", "alpha-beta"),
        ("$MISSING", ""),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("$(date)", "$(date)"),
        ("$1x", "x"),
        (r"\$A", "$A"),
        (r"\\$A", r"\alpha"),
        (r"a\ b", "a b"),
        ("'$A'", "$A"),
        (r"'\$A'", r"\$A"),
        ('"$A b"', "alpha b"),
        (r'"\$A \" \\ \n"', '$A " \\ \\n'),
        ("""'a'"b"c""", "abc"),
        ("${A:-x}", "alpha"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${MISSING-x}", "x"),
        ("${MISSING:-$A}", "alpha"),
        ("${MISSING:-${ALSO:-deep}}", "deep"),
        ("${A:+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${MISSING+x}", ""),
        ("${A:?no}", "alpha"),
        ('"${MISSING:-"a b"}"', "a b"),
        ("${MISSING:-'}'}", "}"),
        ("${@}", ""),
    ],
)
def test_expansion_follows_the_dockerfile_reference(text, expected):
    assert expand(text, VARIABLES) == expected


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("ab'c", "quote ' is not closed", 2),
        ('"$A', 'quote " is not closed', 0),
        ("${A", "} is missing", 0),
        ("x${A:-y", "} is missing", 5),
        ("${}", "needs the name", 0),
        ("${A/x/y}", "is not supported", 0),
        ("${A:x}", "is not supported", 0),
        ("${MISSING:?say it}", "MISSING: say it", 0),
        ("${EMPTY:?}", "EMPTY: is not set", 0),
        ("${A:-" * 60 + "}" * 60, "braces in each other", 250),
    ],
)
def test_errors_say_what_and_where(text, message, offset):
    with pytest.raises(ExpansionError) as caught:
        expand(text, VARIABLES)
    assert message in caught.value.text
    assert caught.value.offset == offset


def test_expansion_may_not_grow_without_bound():
    with pytest.raises(ExpansionError, match="longer than"):
        expand("$A" * 10, {"A": "x" * (EXPANDED_CHARACTERS_MAX // 5)})


def test_backtick_escapes_when_asked_to():
    assert expand("`$A C:\\x", VARIABLES, escape="`") == "$A C:\\x"


def test_words_keep_their_quotes_and_offsets():
    words = split_words("""a  b="c d"\t'e f'g \\ h""")
    assert [word.text for word in words] == ["a", 'b="c d"', "'e f'g", "\\ h"]
    assert [word.offset for word in words] == [0, 3, 11, 18]


def test_unclosed_quote_in_a_word_is_an_error():
    with pytest.raises(ExpansionError, match="not closed"):
        split_words("a 'b")


def test_heredoc_bodies_keep_quotes_and_expand_variables():
    body = 'say "$A" it\'s \\$A \\\\ \\n ${MISSING:-x}\n'
    assert expand_body(body, VARIABLES) == 'say "alpha" it\'s $A \\ \\n x\n'


def test_quote_protects_everything():
    assert expand(quote('it\'s $A "x" \\'), VARIABLES) == 'it\'s $A "x" \\'
