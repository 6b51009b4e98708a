"""Progress: facts as lines in a pipe, a redrawn region on a terminal."""

import io
import re

import pytest

from hostd.cli.live import LiveRegion, clip
from hostd.cli.progress import LiveProgress, Progress, bar
from hostd.cli.settings import Settings

BUILD = [
    {"kind": "cached", "step": 1, "steps": 3, "text": "FROM debian_slim"},
    {"kind": "step", "step": 2, "steps": 3, "text": "RUN echo \\\n  two"},
    {"kind": "line", "step": 2, "steps": 3, "text": "two\x1b[31m"},
    {"kind": "step_done", "step": 2, "steps": 3, "duration_us": 4_200_000},
    {"kind": "cached", "step": 3, "steps": 3, "text": "ENV A=1"},
    {"kind": "done", "step": 3, "steps": 3, "image_id": "im-1"},
]


def feed(progress, events, image=1, images=1):
    for seq, event in enumerate(events):
        progress.building({"seq": seq, "at_us": seq, **event}, image, images)


def test_build_in_a_pipe_is_plain_lines(capsys):
    feed(Progress(Settings()), BUILD)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[:4] == [
        "=> [1/3] FROM debian_slim (cached)",
        "   two\\x1b[31m",
        "=> [2/3] RUN echo \\ two 4.2 s",
        "=> [3/3] ENV A=1 (cached)",
    ]
    assert re.fullmatch(r"image im-1 built in [\d.]+ [um]s", lines[4])


def test_build_that_was_cached_is_one_line(capsys):
    feed(Progress(Settings()), [BUILD[0], BUILD[4], BUILD[5]])
    assert capsys.readouterr().err == "image im-1 (cached)\n"


def test_several_images_are_numbered(capsys):
    feed(Progress(Settings()), BUILD[1:4], image=2, images=3)
    assert "=> [2/3 2/3] RUN" in capsys.readouterr().err


def test_quiet_says_nothing_but_output(capsys):
    progress = Progress(Settings(quiet=True))
    feed(progress, BUILD)
    progress.logs({"lines": [{"stream": "stdout", "text": "data"}], "lost": 0})
    assert capsys.readouterr() == ("data\n", "")


def test_lines_of_containers_keep_their_stream_and_order(capsys):
    lines = [("stdout", "one"), ("stderr", "two"), ("stdout", "three"), ("system", "four")]
    event = {"lines": [{"stream": s, "text": t} for s, t in lines], "lost": 7}
    Progress(Settings()).logs(event)
    out, err = capsys.readouterr()
    assert out == "one\nthree\n"
    assert err == "two\nfour\n7 lines were lost: this side was too slow\n"


def container(name, state, **more):
    return {"container": name, "function": "f", "state": state, "phases_us": {}, **more}


def test_first_start_of_a_function_is_said_once(capsys):
    progress = Progress(Settings())
    for name in ("ct-1", "ct-2"):
        progress.container(container(name, "starting"))
        progress.container(container(name, "idle", phases_us={"mount": 1_000, "boot": 60_000}))
    assert capsys.readouterr().err == "f: first container started in 61 ms\n"
    assert progress.containers() == {"idle": 2}
    progress.container(container("ct-1", "exited"))
    assert progress.containers() == {"idle": 1}


def test_uploads_are_said_when_they_are_done(capsys):
    progress = Progress(Settings())
    for done in range(4):
        progress.uploading(done, 3)
    assert capsys.readouterr().err == "uploaded 3 files\n"


def test_live_lines_show_what_is_going_on():
    progress = LiveProgress(Settings())
    feed(progress, BUILD[:3])
    step, output = progress.compose(80)
    assert "[2/3] RUN echo \\ two" in step
    assert "two\\x1b[31m" in output
    feed(progress, BUILD[3:])
    assert progress.compose(80) == []
    progress.container(container("ct-1", "pulling"))
    progress.container(container("ct-2", "busy"))
    assert progress.compose(80)[0].endswith("containers: 1 starting, 1 ready")
    progress.uploading(1, 4)
    assert "━" in progress.compose(80)[0]
    assert "1/4" in progress.compose(80)[0]


@pytest.mark.parametrize(("done", "total", "full"), [(0, 0, 0), (0, 8, 0), (4, 8, 15), (8, 8, 30)])
def test_bar_fills_in_proportion(done, total, full):
    text = bar(done, total, 80)
    assert text.count("━") == full
    assert text.endswith(f"{done}/{total}")


def test_clip_counts_visible_characters_only():
    assert clip("\033[2mabcdef\033[0m", 3) == "\033[2mabc\033[0m"
    assert clip("abc", 10) == "abc"


class Screen(io.StringIO):
    """A terminal that knows new lines, cursor up and clear line: what the region uses."""

    def isatty(self):
        return True

    def lines(self):
        rows, row, text = [""], 0, self.getvalue()
        for part in re.findall(r"\033\[1A|\033\[2K|\n|[^\033\n]+", text):
            if part == "\033[1A":
                row -= 1
            elif part == "\033[2K":
                rows[row] = ""
            elif part == "\n":
                row += 1
                rows += [""] * (row + 1 - len(rows))
            else:
                rows[row] += part
        return [line for line in rows if line]


def test_output_scrolls_above_the_region_and_the_region_goes_at_the_end(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    with LiveRegion(screen, lambda width: ["working", "more work"]).shown():
        print("first")
        assert screen.lines() == ["first", "working", "more work"]
        print("sec", end="")
        assert screen.lines() == ["first", "sec"]
        print("ond")
        assert screen.lines() == ["first", "second", "working", "more work"]
    assert screen.lines() == ["first", "second"]
    print("after")
    assert screen.lines() == ["first", "second", "after"]


def test_streams_are_restored_when_the_block_fails(monkeypatch):
    import sys

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    with pytest.raises(KeyboardInterrupt), LiveRegion(screen, lambda width: ["x"]).shown():
        raise KeyboardInterrupt
    assert sys.stderr is screen
    assert screen.lines() == []


def test_data_in_a_pipe_gets_no_escape_sequences(monkeypatch):
    out, screen = io.StringIO(), Screen()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", screen)
    with LiveRegion(screen, lambda width: ["working"]).shown():
        print("data")
    assert out.getvalue() == "data\n"
