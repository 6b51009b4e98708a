"""Tables, records, units, waterfall: what goes to standard output."""

import json
import time

import pytest

from hostd.cli.output import print_list, print_record
from hostd.cli.settings import Settings
from hostd.cli.units import age, duration, moment, plain, size
from hostd.cli.waterfall import waterfall

COLUMNS = (("THING", lambda i: i["id"]), (">COUNT", lambda i: str(i["count"])))
REPLY = {"items": [{"id": "ab-1", "count": 7}, {"id": "ab-22", "count": 1234}], "next_cursor": None}


def printed(capsys, output, reply=REPLY):
    print_list(Settings(output=output), reply, COLUMNS)
    return capsys.readouterr().out


def test_table_is_aligned_and_figures_are_flush_right(capsys):
    assert printed(capsys, "table") == "THING  COUNT\nab-1       7\nab-22   1234\n"


def test_empty_table_has_its_titles(capsys):
    assert printed(capsys, "table", {"items": []}) == "THING  COUNT\n"


def test_json_is_what_the_api_said(capsys):
    assert json.loads(printed(capsys, "json")) == REPLY


def test_jsonl_has_one_object_per_line(capsys):
    lines = printed(capsys, "jsonl").splitlines()
    assert [json.loads(line) for line in lines] == REPLY["items"]


def test_id_prints_ids_alone(capsys):
    assert printed(capsys, "id") == "ab-1\nab-22\n"


def test_control_characters_of_users_cannot_reach_the_terminal(capsys):
    hostile = {"items": [{"id": "\x1b]0;owned\x07\u202egpj\nnext", "count": 1}]}
    out = printed(capsys, "table", hostile)
    assert "\\x1b]0;owned\\x07\\u202egpj\\nnext  " in out
    assert plain("déjà-vu 日本") == "déjà-vu 日本"


@pytest.mark.parametrize(
    ("output", "text"),
    [("table", "id    x-1\nname  n\n"), ("id", "x-1\n"), ("jsonl", '{"id": "x-1"}\n')],
)
def test_record_is_printed_in_each_form(output, text, capsys):
    print_record(Settings(output=output), {"id": "x-1"}, [("id", "x-1"), ("name", "n")])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (512 * 2**20, "512 MiB"),
        (3 * 2**40, "3 TiB"),
    ],
)
def test_sizes_have_three_digits(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("length_us", "text"),
    [(0, "0 us"), (420, "420 us"), (4_200, "4.2 ms"), (61_300, "61 ms"), (1_842_000, "1.84 s"),
     (192e6, "3 m 12 s"), (3_900e6, "1 h 5 m"), (90_000e6, "1 d 1 h")],
)  # fmt: skip
def test_durations_read_well_at_every_scale(length_us, text):
    assert duration(length_us) == text


def test_age_of_something_new_and_of_nothing():
    assert age(time.time_ns() // 1000 - 5_200_000) == "5 s"
    assert age(time.time_ns() // 1000 + 60_000_000) == "0 s"  # a clock that is ahead of ours
    assert age(None) == "-"


def test_moment_has_milliseconds():
    assert moment(1_700_000_000_123_456).endswith(".123")


def test_waterfall_is_a_staircase_that_ends_at_the_wall_time():
    lines = waterfall({"queue": 1_000, "boot": 0, "import": 500_000, "run": 499_000}, 1_000_000)
    assert [line.split()[0] for line in lines] == ["queue", "import", "run", "wall"]
    assert lines[0].endswith("0.1 %  ▏")
    first, second = lines[1], lines[2]
    assert "500 ms  50.0 %" in first
    assert first.count("█") == 22
    assert second.rstrip("█▏▎▍▌▋▊▉").count(" ") > first.rstrip("█▏▎▍▌▋▊▉").count(" ")
    assert lines[-1].split() == ["wall", "1", "s"]


def test_waterfall_of_nothing_is_empty():
    assert waterfall({}, 0) == []
    assert waterfall({"queue": 0}, 5) == []


def test_bars_of_a_terminal_without_blocks_are_ascii(monkeypatch):
    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Ascii())
    lines = waterfall({"a": 1, "b": 99}, 100)
    assert lines[0].endswith(" #")
    assert lines[1].endswith("#" * 43) or lines[1].endswith("#" * 44)
    "\n".join(lines).encode("ascii")
