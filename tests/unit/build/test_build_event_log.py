"""The log of a build: order, many readers, bounds."""

import asyncio

import pytest

from hostd.build import eventlog
from hostd.build.eventlog import EventLog
from hostd.clock import SystemClock

pytestmark = pytest.mark.anyio


async def collect(log, after=0):
    return [event async for event in log.read(after)]


async def test_readers_see_everything_from_where_they_ask():
    log = EventLog(SystemClock())
    log.add("step", text="one", step=1)
    early = asyncio.create_task(collect(log))
    await asyncio.sleep(0)
    log.line("out", step=1, stream="stdout")
    log.add("done", image_id="im-x")
    async with asyncio.timeout(5):
        events = await early
        assert [(e.seq, e.kind) for e in events] == [(0, "step"), (1, "line"), (2, "done")]
        assert await collect(log) == events
        assert await collect(log, after=2) == events[2:]
        assert await collect(log, after=9) == []


async def test_oldest_events_go_first(monkeypatch):
    monkeypatch.setattr(eventlog, "EVENTS_MAX", 100)
    log = EventLog(SystemClock())
    for number in range(1_000):
        log.line(str(number), step=1, stream="stdout")
    log.add("failed", text="x")
    events = await collect(log)
    assert len(events) <= 101
    assert events[-2].text == "999"
    assert [e.seq for e in events] == list(range(events[0].seq, 1_001))


async def test_text_is_bounded(monkeypatch):
    monkeypatch.setattr(eventlog, "BYTES_MAX", 10_000)
    log = EventLog(SystemClock())
    for _ in range(100):
        log.line("x" * 50_000, step=1, stream="stderr")
    log.add("done")
    events = await collect(log)
    assert sum(len(event.text) for event in events) <= 10_000
    assert all(len(event.text) <= eventlog.LINE_CHARACTERS_MAX + 1 for event in events)


async def test_slow_reader_goes_on_with_what_is_left(monkeypatch):
    monkeypatch.setattr(eventlog, "EVENTS_MAX", 100)
    log = EventLog(SystemClock())
    log.line("first", step=1, stream="stdout")
    reader = log.read()
    assert (await anext(reader)).text == "first"
    for number in range(500):
        log.line(str(number), step=1, stream="stdout")
    log.add("done")
    rest = [event async for event in reader]
    assert rest[0].seq > 1
    assert rest[-1].kind == "done"
