"""Logs of containers on the disk: kept, read, followed, bounded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hostd.errors import ConflictError, NotFoundError
from hostd.model import LogLine
from hostd.runtime import logread, logstore
from hostd.runtime.logstore import LogStore
from tests.fakes.virtual_clock import VirtualClock

APP, OTHER_APP = "ap-00000001", "ap-00000002"
ONE, TWO = "ct-00000001", "ct-00000002"
CALL, OTHER_CALL = "fc-00000001", "fc-00000002"
NOW_US = VirtualClock().wall_us()

Opener = Callable[..., LogStore]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens stores on one directory; closes them in the end."""
    stores: list[LogStore] = []

    def open_store(*, bytes_max: int = 10_000_000, total_bytes_max: int = 10**9) -> LogStore:
        store = LogStore(
            tmp_path / "logs",
            bytes_max=bytes_max,
            total_bytes_max=total_bytes_max,
            clock=VirtualClock(),
        )
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def times() -> Iterator[int]:
    return iter(range(NOW_US, NOW_US + 10**9))


def line(text: str, at_us: int, *, source: str = ONE, call: str | None = None) -> LogLine:
    return LogLine(at_us=at_us, container_id=source, stream="stdout", text=text, call_id=call)


async def texts(store: LogStore, ident: str, *, tail: int = 100, follow: bool = False) -> list[str]:
    return [each.text async for each in store.read(ident, tail=tail, follow=follow)]


async def test_lines_are_read_at_once_and_whole(opened: Opener) -> None:
    store = opened()
    whole = LogLine(
        at_us=NOW_US, container_id=ONE, stream="stderr", text="ä\n\x00", call_id=CALL, input=3
    )
    store.append(whole, APP)
    assert [each async for each in store.read(ONE, tail=10)] == [whole]


async def test_tail_gives_the_last_lines_in_their_order(
    opened: Opener, times: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logread, "BLOCK_BYTES", 100)
    store = opened()
    for n in range(50):
        store.append(line(f"{n} " + "x" * (n * 7), next(times)), APP)
    found = await texts(store, ONE, tail=5)
    assert [each.split()[0] for each in found] == ["45", "46", "47", "48", "49"]
    assert len(await texts(store, ONE, tail=1_000)) == 50
    assert await texts(store, ONE, tail=0) == []


async def test_app_merges_its_containers_by_time(opened: Opener, times: Iterator[int]) -> None:
    store = opened()
    for n in range(6):
        store.append(line(str(n), next(times), source=(ONE, TWO)[n % 2]), APP)
    store.append(line("other", next(times), source="ct-00000003"), OTHER_APP)
    assert await texts(store, APP) == ["0", "1", "2", "3", "4", "5"]
    assert await texts(store, APP, tail=3) == ["3", "4", "5"]


async def test_call_has_its_own_lines_only(opened: Opener, times: Iterator[int]) -> None:
    store = opened()
    store.append(line(f"names {CALL} in its text", next(times), call=OTHER_CALL), APP)
    for source in (ONE, TWO):
        store.append(line("before", next(times), source=source), APP)
        store.append(line(f"of {source}", next(times), source=source, call=CALL), APP)
    assert await texts(store, CALL) == [f"of {ONE}", f"of {TWO}"]


async def test_lines_survive_a_restart(opened: Opener, times: Iterator[int]) -> None:
    first = opened()
    first.append(line("a", next(times), call=CALL), APP)
    first.close()
    second = opened()
    assert await texts(second, ONE) == ["a"]
    assert await texts(second, CALL) == ["a"]
    assert await texts(second, APP, follow=True) == ["a"]


async def test_unknown_ids_are_not_found_and_never_become_paths(opened: Opener) -> None:
    store = opened()
    for ident in ("ct-99999999", "", "ct-", "../../etc/passwd", "ap-0000"):
        with pytest.raises(NotFoundError):
            await texts(store, ident)
    store.append(line("x", NOW_US, source="../evil"), APP)
    store.append(line("x", NOW_US), "../evil")
    assert store.statistics().containers == 0


async def test_prefixes_must_be_unique(opened: Opener, times: Iterator[int]) -> None:
    store = opened()
    store.append(line("a", next(times), source="ct-aaaaaaaa"), APP)
    store.append(line("b", next(times), source="ct-aaaabbbb"), APP)
    assert await texts(store, "ct-aaaaa") == ["a"]
    with pytest.raises(ConflictError, match="several"):
        await texts(store, "ct-aaaa")


async def test_ended_object_without_lines_has_an_empty_log(opened: Opener) -> None:
    store = opened()
    store.begin(ONE, APP)
    store.begin(CALL, APP)
    for ident in (ONE, CALL):
        store.end(ident)
        assert await texts(store, ident, follow=True) == []


# --- following ---


async def follow(
    store: LogStore, ident: str, tail: int = 100
) -> tuple[list[str], asyncio.Task[None]]:
    found: list[str] = []

    async def collect() -> None:
        async for each in store.read(ident, tail=tail, follow=True):
            found.append(each.text)  # noqa: PERF401 - the test looks while it grows

    task = asyncio.get_running_loop().create_task(collect())
    for _ in range(200):
        await asyncio.sleep(0.005)
        if found or task.done():
            break
    return found, task


async def test_follower_gets_each_line_once_until_the_container_ends(
    opened: Opener, times: Iterator[int]
) -> None:
    store = opened()
    store.begin(ONE, APP)
    store.append(line("old", next(times)), APP)
    found, task = await follow(store, ONE)
    for n in range(3):
        store.append(line(f"new {n}", next(times)), APP)
    store.append(line("elsewhere", next(times), source=TWO), APP)
    store.end(ONE)
    async with asyncio.timeout(5):
        await task
    assert found == ["old", "new 0", "new 1", "new 2"]
    assert store.statistics().followers == 0


@pytest.mark.parametrize("ident", [APP, CALL])
async def test_apps_and_calls_are_followed_to_their_end(
    opened: Opener, times: Iterator[int], ident: str
) -> None:
    store = opened()
    store.begin(APP, APP)
    store.begin(CALL, APP)
    store.append(line("old", next(times), call=CALL), APP)
    found, task = await follow(store, ident)
    store.append(line("new", next(times), source=TWO, call=CALL), APP)
    store.end(ident)
    async with asyncio.timeout(5):
        await task
    assert found == ["old", "new"]


async def test_lines_written_while_the_tail_is_read_come_once(
    opened: Opener, times: Iterator[int]
) -> None:
    store = opened()
    store.begin(ONE, APP)
    written = 0
    async with asyncio.timeout(10):
        for _ in range(20):
            reader = store.read(ONE, tail=100_000, follow=True)
            for _ in range(20):
                store.append(line(str(written), next(times)), APP)
                written += 1
            seen = [await anext(reader)]
            while len(seen) < written:
                if len(seen) % 7 == 0:
                    store.append(line(str(written), next(times)), APP)
                    written += 1
                seen.append(await anext(reader))
            assert [int(each.text) for each in seen] == list(range(written))
            await reader.aclose()


async def test_reader_that_leaves_is_forgotten(opened: Opener, times: Iterator[int]) -> None:
    store = opened()
    store.begin(ONE, APP)
    store.append(line("x", next(times)), APP)
    _, task = await follow(store, ONE)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert store.statistics().followers == 0


async def test_slow_follower_is_told_what_it_missed(
    opened: Opener, times: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstore, "FOLLOWER_LINES_MAX", 5)
    store = opened()
    store.begin(ONE, APP)
    store.append(line("old", next(times)), APP)
    found, task = await follow(store, ONE)
    for n in range(20):
        store.append(line(str(n), next(times)), APP)
    store.end(ONE)
    async with asyncio.timeout(5):
        await task
    lost = "15 lines were lost: the reader was too slow"
    assert found == ["old", lost, "15", "16", "17", "18", "19"]


async def test_close_ends_followers(opened: Opener, times: Iterator[int]) -> None:
    store = opened()
    store.begin(ONE, APP)
    store.append(line("old", next(times)), APP)
    _, task = await follow(store, ONE)
    store.close()
    async with asyncio.timeout(5):
        await task


# --- bounds ---


async def test_log_beyond_its_size_is_counted_and_told_once(
    opened: Opener, times: Iterator[int]
) -> None:
    store = opened(bytes_max=2_000)
    store.begin(ONE, APP)
    for n in range(100):
        store.append(line(f"{n} " + "x" * 100, next(times)), APP)
    live = await texts(store, ONE)
    kept = len(live) - 1
    assert live[-1].startswith(f"truncated: {100 - kept} lines beyond")
    store.end(ONE)
    ended = await texts(store, ONE)
    assert ended == live
    store.close()
    assert await texts(opened(), ONE) == live


async def test_oldest_ended_logs_go_when_all_are_too_large(
    opened: Opener, times: Iterator[int], tmp_path: Path
) -> None:
    store = opened(total_bytes_max=10_000)
    for n in range(10):
        source = f"ct-0000000{n}"
        store.begin(source, APP)
        for _ in range(10):
            store.append(line("x" * 100, next(times), source=source), APP)
        store.end(source)
        await texts(store, source)
    assert len(list((tmp_path / "logs" / APP).iterdir())) < 10
    assert store.statistics().bytes <= 10_000 + 2_500
    with pytest.raises(NotFoundError):
        await texts(store, "ct-00000000")
    assert len(await texts(store, "ct-00000009")) == 10


async def test_live_logs_share_the_space_when_it_is_all_theirs(
    opened: Opener, times: Iterator[int]
) -> None:
    store = opened(total_bytes_max=20_000)
    for source in (ONE, TWO):
        store.begin(source, APP)
    for _ in range(400):
        for source in (ONE, TWO):
            store.append(line("x" * 100, next(times), source=source), APP)
    assert store.statistics().bytes < 25_000
    assert store.statistics().dropped > 0


async def test_logs_older_than_a_week_go_at_the_next_start(
    opened: Opener, times: Iterator[int], tmp_path: Path
) -> None:
    store = opened()
    for source in (ONE, TWO):
        store.append(line("x", next(times), source=source, call=CALL), APP)
    store.close()
    old_s = (NOW_US - logstore.AGE_MAX_US) / 1e6 - 60
    os.utime(tmp_path / "logs" / APP / f"{ONE}.jsonl", (old_s, old_s))
    fresh_s = NOW_US / 1e6
    os.utime(tmp_path / "logs" / APP / f"{TWO}.jsonl", (fresh_s, fresh_s))
    again = opened()
    with pytest.raises(NotFoundError):
        await texts(again, ONE)
    assert await texts(again, CALL) == ["x"]
    assert not (tmp_path / "logs" / APP / f"{ONE}.jsonl").exists()


async def test_memory_of_waiting_lines_is_bounded(
    opened: Opener, times: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstore, "WAITING_BYTES_MAX", 5_000)
    store = opened()
    store.begin(ONE, APP)
    for _ in range(200):
        store.append(line("x" * 100, next(times)), APP)
    found = await texts(store, ONE, tail=1_000)
    assert found[-1].startswith("truncated: ")
    assert len(found) < 40


async def test_lines_that_cannot_be_written_are_lost_and_later_ones_are_not(
    opened: Opener, times: Iterator[int], tmp_path: Path
) -> None:
    store = opened()
    (tmp_path / "logs" / APP).write_text("a file where the directory should be")
    store.append(line("lost", next(times)), APP)
    assert await texts(store, ONE) == []
    (tmp_path / "logs" / APP).unlink()
    store.append(line("kept", next(times)), APP)
    assert await texts(store, ONE) == ["kept"]


async def test_torn_line_is_skipped(opened: Opener, times: Iterator[int], tmp_path: Path) -> None:
    first = opened()
    first.append(line("whole", next(times)), APP)
    first.close()
    with (tmp_path / "logs" / APP / f"{ONE}.jsonl").open("a") as file:
        file.write('{"at_us":17,"contai')
    assert await texts(opened(), ONE) == ["whole"]


async def test_appending_costs_the_loop_little(opened: Opener, times: Iterator[int]) -> None:
    store = opened(bytes_max=10**9)
    store.begin(ONE, APP)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for _ in range(20_000):
        store.append(line("x" * 80, next(times), call=CALL), APP)
    # A sanity bound, not a benchmark: 100 us a line would stall the daemon.
    assert (loop.time() - begin) / 20_000 < 100e-6
    assert len(await texts(store, ONE, tail=100_000)) == 20_000
