"""COPY and ADD: patterns and names against the files of a context."""

import pytest

from hostd.build.copying import Context, ContextError, matches
from hostd.errors import InvalidError
from hostd.model import SourceFile


def file(path, **more):
    return SourceFile(path=path, digest="sha256:" + "0" * 64, **more)


CONTEXT = Context(
    [
        file("app.py"),
        file("setup.cfg"),
        file("src/a.py"),
        file("src/deep/b.py"),
        SourceFile(path="src/empty", kind="dir", mode=0o700),
        SourceFile(path="link", kind="symlink", target="src"),
        SourceFile(path="src/deep/up", kind="symlink", target="../a.py"),
        SourceFile(path="abs", kind="symlink", target="/src/deep/../deep/up"),
        SourceFile(path="loop", kind="symlink", target="loop"),
    ]
)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*.py", "a.py", True),
        ("*.py", "a.pyc", False),
        ("a*b*c", "aXbYc", True),
        ("a*b*c", "aXbY", False),
        ("?", "é", True),
        ("?", "", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        (r"\*", "*", True),
        (r"\*", "a", False),
        (r"[\]]", "]", True),
        ("*", "", True),
        ("a*" * 30 + "b", "a" * 200, False),
    ],
)
def test_patterns_are_those_of_go(pattern, name, expected):
    assert matches(pattern, name) is expected


@pytest.mark.parametrize("pattern", ["[", "[]", "[a", "[a-", "[a-]", "[-x]", "x\\", "[^]"])
def test_broken_patterns_are_errors(pattern):
    with pytest.raises(ContextError):
        matches(pattern, "abc")


def names(sources):
    return [(s.name, s.is_directory, [e.path for e in s.entries]) for s in sources]


def test_a_file_is_itself():
    assert names(CONTEXT.match("./app.py")) == [("app.py", False, [""])]


def test_a_directory_is_its_contents_parents_first():
    assert names(CONTEXT.match("src/")) == [
        ("src", True, ["a.py", "deep", "deep/b.py", "deep/up", "empty"])
    ]


def test_the_whole_context():
    (source,) = CONTEXT.match(".")
    assert source.is_directory
    assert "src/deep/b.py" in [entry.path for entry in source.entries]


def test_patterns_stop_at_slashes_and_are_sorted():
    assert names(CONTEXT.match("s*")) == [
        ("setup.cfg", False, [""]),
        ("src", True, ["a.py", "deep", "deep/b.py", "deep/up", "empty"]),
    ]
    assert [s.name for s in CONTEXT.match("*/*.py")] == ["a.py"]


def test_a_pattern_may_match_nothing_but_a_name_may_not():
    assert CONTEXT.match("*.rs") == []
    with pytest.raises(ContextError, match="not in the build context") as caught:
        CONTEXT.match("ap.py")
    assert caught.value.hint == "did you mean app.py?"


def test_named_links_are_followed_inside_the_context():
    assert names(CONTEXT.match("link/a.py")) == [("a.py", False, [""])]
    assert CONTEXT.match("link")[0].is_directory
    assert CONTEXT.match("abs")[0].entries[0].kind == "file"


def test_links_inside_a_directory_stay_links():
    entries = {entry.path: entry for entry in CONTEXT.match("src")[0].entries}
    assert (entries["deep/up"].kind, entries["deep/up"].target) == ("symlink", "../a.py")


def test_link_loops_end():
    with pytest.raises(ContextError, match="40 links"):
        CONTEXT.match("loop")


@pytest.mark.parametrize("name", ["../x", "src/../../x", "/../x"])
def test_sources_outside_the_context_are_refused(name):
    with pytest.raises(ContextError, match="outside the build context"):
        CONTEXT.match(name)


@pytest.mark.parametrize(
    "files",
    [
        [file("/abs")],
        [file("../up")],
        [file("a/../b")],
        [file("a"), file("a")],
        [file("a"), file("a/b")],
        [file("a/b"), file("a")],
        [file("a/" * 300 + "b")],
        [file("a\0b")],
    ],
)
def test_contexts_that_cannot_be_are_refused(files):
    with pytest.raises(InvalidError):
        Context(files)


def test_files_need_digests_and_links_need_targets():
    with pytest.raises(InvalidError, match="no digest"):
        Context([SourceFile(path="a")]).match("a")
    with pytest.raises(InvalidError, match="no target"):
        Context([SourceFile(path="d/a", kind="symlink")]).match("d")
