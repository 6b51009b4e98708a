"""Laws of the Dockerfile parser and of expansion, over texts nobody would write."""

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.build.copying import Context, ContextError, matches
from hostd.build.dockerfile import parse
from hostd.build.expansion import ExpansionError, expand, expand_body, quote, split_words
from hostd.build.recipe import parse_recipe
from hostd.errors import DockerfileError, InvalidError
from hostd.model import Dockerfile, ImageConfig, Recipe, SourceFile

FRAGMENTS = [
    "FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "WORKDIR", "USER", "ENTRYPOINT", "CMD", "LABEL",
    "EXPOSE", "SHELL", "VOLUME", "HEALTHCHECK", "ONBUILD", "run", "debian", "x", "a=1", "$A",
    "${A}", "${A:-b}", "${A:+", "}", "'", '"', "\\", "\\\n", "`", "`\n", "\n", "\n\n", " ",
    "\t", "#", "# c\n", "# escape=`\n", "# syntax=x\n", "<<EOF", "<<-'EOF'", "<<\\E", "\nEOF\n",
    "\n\tEOF\n", "E\n", "[", "]", '["a", "b"]', "--chown=a", "--chmod=7", "--from=b", "--", "/d/",
    ".", "..", "*", "?", "a.txt", "=", ":", "é", "\r\n", "\0", "80/tcp", "\x0b", "\u2028",
]  # fmt: skip

texts = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(" ".join),
)
CONTEXT = [
    SourceFile(path="a.txt", digest="sha256:" + "1" * 64),
    SourceFile(path="d/b", digest="sha256:" + "2" * 64),
]
words = st.text(max_size=60)
plain = st.text(alphabet=string.ascii_letters + string.digits + "-_./:,=@é ", max_size=40)
variables = st.dictionaries(st.sampled_from(["A", "B", "C"]), words, max_size=3)


def outcome(function, expected, *args):
    """What the function gives, or the expected kind of error it raised."""
    try:
        return function(*args), None
    except expected as error:
        return None, error


@settings(max_examples=500)
@given(texts)
def test_parser_raises_nothing_but_dockerfile_errors(text):
    script, error = outcome(parse, DockerfileError, text)
    if script is not None:
        assert parse(str(script)) == script
    else:
        assert min(error.fields["line"], error.fields["column"]) >= 1


@settings(max_examples=500)
@given(texts)
def test_planning_raises_nothing_but_dockerfile_errors(text):
    recipe = Recipe(steps=[Dockerfile(text=f"FROM x\n{text}", context=CONTEXT)])
    steps, error = outcome(lambda: parse_recipe(recipe).steps(ImageConfig()), DockerfileError)
    if steps is not None:
        assert all("\n" not in step.text for step in steps)
    else:
        assert 1 <= error.fields["line"] <= text.count("\n") + 2


@given(texts, variables)
def test_expansion_raises_nothing_but_its_error(text, values):
    for function in (expand, expand_body):
        result, error = outcome(function, ExpansionError, text, values)
        assert isinstance(result, str) or 0 <= error.offset <= len(text)


@given(words, variables)
def test_quoted_text_expands_to_itself(text, values):
    assert expand(quote(text), values) == text
    assert expand(quote(text), values, escape="`") == text


@given(plain, variables)
def test_text_without_special_characters_expands_to_itself(text, values):
    assert expand(text, values) == text


@given(variables, words)
def test_default_and_alternative_complement_each_other(values, other):
    word = quote(other)
    default = expand("${A:-" + word + "}", values)
    alternative = expand("${A:+" + word + "}", values)
    if values.get("A"):
        assert (default, alternative) == (values["A"], other)
    else:
        assert (default, alternative) == (other, "")


@given(st.lists(words.filter(bool), max_size=6))
def test_quoted_words_split_back_into_themselves(items):
    line = " ".join(quote(item) for item in items)
    assert [expand(word.text, {}) for word in split_words(line)] == items


@given(st.text(alphabet="ab*?[]^-\\", max_size=12), st.text(alphabet="ab-]", max_size=8))
def test_patterns_end_and_raise_only_their_error(pattern, name):
    try:
        result = matches(pattern, name)
    except ContextError:
        return
    assert result in (True, False)
    assert not result or matches(f"*{pattern}*", name)


@given(
    st.lists(st.text(alphabet="ab./", min_size=1, max_size=8), max_size=8),
    st.text("ab./*", max_size=8),
)
def test_contexts_never_match_outside_themselves(paths, pattern):
    try:
        files = [SourceFile(path=path, digest="sha256:" + "1" * 64) for path in paths]
        sources = Context(files).match(pattern)
    except (InvalidError, ContextError):
        return
    for source in sources:
        for entry in source.entries:
            assert ".." not in entry.path.split("/")
            assert not entry.path.startswith("/")
