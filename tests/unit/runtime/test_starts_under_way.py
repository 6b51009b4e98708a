"""Clean-ups let starts go first, but not for ever."""

import asyncio

import pytest

from hostd.runtime import workshop
from hostd.runtime.workshop import StartsUnderWay


async def test_nobody_waits_while_nothing_starts():
    async with asyncio.timeout(1):
        await StartsUnderWay().wait_none()


async def test_waiting_ends_with_the_last_start():
    starts = StartsUnderWay()
    starts.begin("ct-1")
    starts.begin("ct-2")
    waiting = asyncio.ensure_future(starts.wait_none())
    starts.end("ct-1")
    starts.end("ct-1")
    await asyncio.sleep(0)
    assert not waiting.done()
    starts.end("ct-2")
    async with asyncio.timeout(1):
        await waiting


async def test_an_endless_burst_does_not_hold_up_clean_ups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workshop, "CALM_TIMEOUT_S", 0.01)
    starts = StartsUnderWay()
    starts.begin("ct-1")
    async with asyncio.timeout(1):
        await starts.wait_none()
