"""The rules of .dockerignore, pattern by pattern."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.errors import InvalidError
from hostd.sdk.dockerignore import FilePatternMatcher


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        (["*.log"], ["a.log"], ["d/a.log", "a.logs", "log"]),
        (["**/*.log"], ["a.log", "d/a.log", "d/e/a.log"], ["a.txt"]),
        (["d"], ["d", "d/a", "d/e/f"], ["e/d", "da"]),
        (["/d/"], ["d", "d/a"], ["e/d"]),
        (["d/*"], ["d/a", "d/e/f"], ["d", "a"]),
        (["d/**"], ["d/a", "d/e/f"], ["a"]),
        (["**/d"], ["d", "d/a", "x/d", "x/y/d/a"], ["x/da"]),
        (["a?c"], ["abc"], ["a/c", "abbc", "ac"]),
        (["[ab].txt"], ["a.txt", "b.txt"], ["c.txt"]),
        (["[^ab].txt"], ["c.txt"], ["a.txt"]),
        (["[a-c]1"], ["b1"], ["d1"]),
        (["*", "!keep"], ["a", "b/c"], ["keep", "keep/a"]),
        (["*", "!d/keep"], ["d/other"], ["d/keep"]),
        (["*.txt", "!a.txt", "a.*"], ["a.txt", "b.txt"], ["c.md"]),
        ([r"\*.txt"], ["*.txt"], ["a.txt"]),
        (["a.b"], ["a.b"], ["axb"]),
        (["./a/../b"], ["b"], ["a"]),
        (["", "  ", "."], [], ["a", "a/b"]),
        ([" a "], ["a"], ["b"]),
        (["**"], ["a", "a/b"], []),
        (["a**"], ["ab", "ab/c"], ["b"]),
    ],
)
def test_patterns(patterns: list[str], ignored: list[str], kept: list[str]) -> None:
    matcher = FilePatternMatcher(*patterns)
    assert [path for path in ignored if not matcher(PurePath(path))] == []
    assert [path for path in kept if matcher(PurePath(path))] == []


def test_files_of_patterns_have_comments(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("# a comment\n*.log\n\n!b.log\n")
    matcher = FilePatternMatcher.from_file(tmp_path / ".dockerignore")
    assert matcher(PurePath("a.log"))
    assert not matcher(PurePath("b.log"))
    assert not matcher(PurePath("# a comment"))


def test_inverted_keeps_what_it_ignored() -> None:
    matcher = ~FilePatternMatcher("**/*.py")
    assert matcher(PurePath("a.txt"))
    assert not matcher(PurePath("d/a.py"))
    assert not (~matcher)(PurePath("a.txt"))


def test_directories_are_pruned_only_when_nothing_below_can_be_kept() -> None:
    assert FilePatternMatcher("d").may_prune
    assert not FilePatternMatcher("d", "!d/a").may_prune
    assert not (~FilePatternMatcher("d")).may_prune


def test_malformed_patterns_are_refused() -> None:
    with pytest.raises(InvalidError, match="names no file"):
        FilePatternMatcher("!")
    with pytest.raises(InvalidError, match=r"ignore pattern '\[z-a\]'"):
        FilePatternMatcher("[z-a]")


@given(
    st.lists(st.text(alphabet="ab*?[]!/.\\-^ ", max_size=8), max_size=4),
    st.text("ab./", max_size=8),
)
def test_no_pattern_crashes_and_a_directory_takes_its_content_along(
    patterns: list[str], path: str
) -> None:
    try:
        matcher = FilePatternMatcher(*patterns)
    except InvalidError:
        return
    text = PurePath(path).as_posix()
    if matcher.may_prune and text not in (".", "/") and matcher(PurePath(text)):
        assert matcher(PurePath(text) / "below")
