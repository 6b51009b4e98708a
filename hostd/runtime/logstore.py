"""The logs of this host on its disk: one append-only file per container, JSON lines.

    <directory>/<app id>/<container id>.jsonl      model.LogLine
    <directory>/calls.index                        "<call id> <container id>": who wrote for whom

Lines gather in memory for ``GATHER_S`` and are written by one thread, so the event loop never waits
for the disk; a read first waits for the lines before it. Nothing is synced: logs may lose their
last moments in a power cut, never more. A disk that refuses lines loses them.

Bounds: a container's file (``bytes_max``; what follows is counted and told in one ``system`` line),
all files together, their age, the memory of waiting lines, and of each follower. Ids that come from
users are only looked up, they never become part of a path.

Everything but the writing thread runs on the event loop.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hostd.clock import Clock, SystemClock
from hostd.errors import ConflictError, NotFoundError
from hostd.log import get_logger
from hostd.model import LogLine
from hostd.runtime.logread import Part, last_lines

log = get_logger(__name__)

TOTAL_BYTES_MAX = 2**30
AGE_MAX_US = 7 * 86_400 * 1_000_000
GATHER_S = 0.05
"""How long lines wait for others before they are written; followers get them at once."""
WAITING_BYTES_MAX = 64 * 2**20
"""Lines in memory when the disk is slower than the containers."""
FOLLOWER_LINES_MAX = 10_000
"""Of one follower that does not keep up; older ones are counted."""
PAIRS_MAX = 200_000
"""Entries of the index of calls: about 40 MB."""
ENDED_MAX = 10_000
"""Ids that ended and wrote nothing: asking for their log is no error."""
PREFIX_CHARS_MIN = 7
PRUNE_EVERY_BYTES = 16 * 2**20

_ID = re.compile(r"[a-z]{2}-[0-9a-z]{1,40}")


@dataclass(slots=True)
class _Source:
    """One container's file."""

    app_id: str
    path: Path
    size: int = 0
    """Accepted bytes, the waiting ones included."""
    touched_us: int = 0
    is_live: bool = True
    dropped: int = 0
    """Lines beyond the limits."""
    waiting: list[bytes] = field(default_factory=list)
    last_call: str | None = None


@dataclass(slots=True)
class _Follower:
    """Somebody who waits for new lines of an object."""

    ident: str
    lines: deque[LogLine] = field(default_factory=deque)
    lost: int = 0
    is_over: bool = False
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, line: LogLine) -> None:
        if len(self.lines) >= FOLLOWER_LINES_MAX:
            self.lines.popleft()
            self.lost += 1
        self.lines.append(line)
        self.filled.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatistics:
    """What the store holds and what it lost."""

    containers: int
    bytes: int
    followers: int
    dropped: int


class LogStore:
    """Keeps and reads log lines. Make it on the event loop that uses it."""

    def __init__(
        self,
        directory: Path,
        *,
        bytes_max: int,
        total_bytes_max: int = TOTAL_BYTES_MAX,
        clock: Clock | None = None,
    ) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._total_bytes_max = total_bytes_max
        self._clock: Clock = clock or SystemClock()
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        """By container id, those that ended first before later ones."""
        self._calls: OrderedDict[str, set[str]] = OrderedDict()
        self._pairs = 0
        self._new_pairs: list[str] = []
        self._live: set[str] = set()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._followers: dict[str, list[_Follower]] = {}
        self._total = 0
        self._waiting_bytes = 0
        self._since_prune = 0
        self._dropped = 0
        self._doomed: list[Path] = []
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: Future[int] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-writer")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._load()

    # --- what the scheduler calls --------------------------------------------------------------

    def begin(self, ident: str, app_id: str) -> None:
        """An app, container or call exists now and may write lines."""
        self._live.add(ident)
        if ident.startswith("ct-"):
            self._source(ident, app_id)

    def append(self, line: LogLine, app_id: str) -> None:
        """Keep a line and hand it to those who follow. Never raises, never waits."""
        source = self._source(line.container_id, app_id)
        if source is not None:
            self._keep(source, line)
        if self._followers:
            for ident in (line.container_id, line.call_id, app_id):
                for follower in self._followers.get(ident or "", ()):
                    follower.add(line)

    def end(self, ident: str) -> None:
        """No more lines of this app, container or call will come."""
        self._live.discard(ident)
        source = self._sources.get(ident)
        if source is not None and source.is_live:
            self._close_source(ident, source)
        elif source is None:
            self._remember_end(ident)
        for follower in self._followers.get(ident, ()):
            follower.is_over = True
            follower.filled.set()

    def _remember_end(self, ident: str) -> None:
        self._ended[ident] = None
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)

    def _source(self, container_id: str, app_id: str) -> _Source | None:
        source = self._sources.get(container_id)
        if source is None and _ID.fullmatch(container_id) and _ID.fullmatch(app_id):
            path = self._directory / app_id / f"{container_id}.jsonl"
            source = self._sources[container_id] = _Source(app_id, path)
        return source

    def _keep(self, source: _Source, line: LogLine) -> None:
        data = msgspec.json.encode(line) + b"\n"
        is_full = source.size + len(data) > self._limit()
        if is_full or self._waiting_bytes + len(data) > WAITING_BYTES_MAX:
            source.dropped += 1
            self._dropped += 1
            return
        if line.call_id is not None and line.call_id != source.last_call:
            source.last_call = line.call_id
            self._note_call(line.call_id, line.container_id)
        self._accept(source, data)
        source.touched_us = line.at_us

    def _accept(self, source: _Source, data: bytes) -> None:
        source.waiting.append(data)
        source.size += len(data)
        self._total += len(data)
        self._waiting_bytes += len(data)
        self._since_prune += len(data)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush_soon)

    def _limit(self) -> int:
        """Bytes of one container: less when the live ones alone would fill the whole."""
        if self._total <= self._total_bytes_max:
            return self._bytes_max
        return min(self._bytes_max, self._total_bytes_max // max(len(self._sources), 1))

    def _note_call(self, call_id: str, container_id: str) -> None:
        containers = self._calls.setdefault(call_id, set())
        if container_id in containers:
            return
        containers.add(container_id)
        self._pairs += 1
        self._new_pairs.append(f"{call_id} {container_id}\n")
        while self._pairs > PAIRS_MAX:
            _, gone = self._calls.popitem(last=False)
            self._pairs -= len(gone)

    def _close_source(self, container_id: str, source: _Source) -> None:
        source.is_live = False
        if not source.size and not source.dropped:
            del self._sources[container_id]
            self._remember_end(container_id)
            return
        if source.dropped:
            self._accept(source, msgspec.json.encode(self._truncated(container_id, source)) + b"\n")
        source.touched_us = source.touched_us or self._clock.wall_us()
        # Those that ended are in the order of their ends: the first is the first to go.
        self._sources.move_to_end(container_id)

    def _truncated(self, container_id: str, source: _Source) -> LogLine:
        return LogLine(
            at_us=max(source.touched_us, 1),
            container_id=container_id,
            stream="system",
            text=f"truncated: {source.dropped} lines beyond {source.size} bytes were dropped",
        )

    # --- writing -------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Hand waiting lines to the thread, unless it is still busy with the last ones."""
        self._timer = None
        if self._writing is not None and not self._writing.done():
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush_soon)
            return
        self._hand_over()

    def _hand_over(self) -> Future[int]:
        if self._since_prune >= PRUNE_EVERY_BYTES or self._total > self._total_bytes_max:
            self._prune()
        batch = {s.path: b"".join(s.waiting) for s in self._sources.values() if s.waiting}
        for source in self._sources.values():
            source.waiting = []
        self._waiting_bytes = 0
        if self._new_pairs:
            batch[self._directory / "calls.index"] = "".join(self._new_pairs).encode()
            self._new_pairs = []
        doomed, self._doomed = self._doomed, []
        self._writing = self._thread.submit(_write, batch, doomed)
        return self._writing

    async def _flushed(self) -> None:
        """Wait until every line accepted before now is in its file."""
        await asyncio.wrap_future(self._hand_over())

    def _prune(self) -> None:
        """Give up the oldest ended logs beyond the limits."""
        self._since_prune = 0
        oldest_us = self._clock.wall_us() - AGE_MAX_US
        ended = [(key, each) for key, each in self._sources.items() if not each.is_live]
        for container_id, source in ended:
            if self._total <= self._total_bytes_max and source.touched_us >= oldest_us:
                return
            self._total -= source.size
            self._waiting_bytes -= sum(map(len, source.waiting))
            self._doomed.append(source.path)
            del self._sources[container_id]

    def close(self) -> None:
        """Write what waits; end the thread and all followers. Idempotent."""
        for followers in self._followers.values():
            for follower in followers:
                follower.is_over = True
                follower.filled.set()
        for container_id, source in list(self._sources.items()):
            if source.is_live:
                self._close_source(container_id, source)
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_closed:
            self._is_closed = True
            self._hand_over()
            self._thread.shutdown(wait=True)

    # --- what an earlier daemon left -----------------------------------------------------------

    def _load(self) -> None:
        found = []
        for path in self._directory.glob("*/*.jsonl"):
            if _ID.fullmatch(path.stem) and _ID.fullmatch(path.parent.name):
                status = path.stat()
                found.append((status.st_mtime_ns // 1_000, path, status.st_size))
        for touched_us, path, size in sorted(found):
            source = _Source(path.parent.name, path, size, touched_us, is_live=False)
            self._sources[path.stem] = source
            self._total += size
        self._load_calls()
        self._prune()

    def _load_calls(self) -> None:
        index = self._directory / "calls.index"
        if not index.exists():
            return
        lines = index.read_text(errors="replace").splitlines()[-PAIRS_MAX:]
        kept = [line for line in lines if line.partition(" ")[2] in self._sources]
        for line in kept:
            call_id, _, container_id = line.partition(" ")
            self._note_call(call_id, container_id)
        self._new_pairs = []
        if len(kept) < len(lines):
            fresh = index.with_suffix(".new")
            fresh.write_text("".join(f"{line}\n" for line in kept))
            fresh.replace(index)

    # --- reading -------------------------------------------------------------------------------

    async def read(
        self, ident: str, *, tail: int, follow: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        """The last lines of an app, container or call; then new ones until it ends.

        Every line appears once. A reader that is too slow gets a ``system`` line with the number of
        lines it missed.

        Raises:
            NotFoundError: nothing is known of this id, or its log is gone.
            ConflictError: it begins several ids.
        """
        ident = self._whole(ident)
        follower = _Follower(ident, is_over=ident not in self._live)
        if follow:
            self._followers.setdefault(ident, []).append(follower)
        try:
            # No await between the subscription and the sizes: no line is missed or read twice.
            names = self._sources_of(ident)
            parts = [Part(self._sources[each].path, self._sources[each].size) for each in names]
            await self._flushed()
            call_id = ident if ident in self._calls else None
            for line in await asyncio.to_thread(last_lines, parts, tail, call_id=call_id):
                yield line
            for name in names:
                source = self._sources.get(name)
                if source is not None and source.is_live and source.dropped:
                    yield self._truncated(name, source)
            if follow:
                async for line in _followed(follower):
                    yield line
        finally:
            if follow:
                self._forget(follower)

    def _forget(self, follower: _Follower) -> None:
        remaining = [each for each in self._followers[follower.ident] if each is not follower]
        if remaining:
            self._followers[follower.ident] = remaining
        else:
            del self._followers[follower.ident]

    def _whole(self, ref: str) -> str:
        apps = {source.app_id for source in self._sources.values()}
        known: tuple[Iterable[str], ...] = (
            self._live,
            self._sources,
            self._calls,
            apps,
            self._ended,
        )
        if any(ref in group for group in known):
            return ref
        found: set[str] = set()
        if len(ref) >= PREFIX_CHARS_MIN:
            found = {each for group in known for each in group if each.startswith(ref)}
        if len(found) > 1:
            first, second = sorted(found)[:2]
            raise ConflictError(f"{ref} begins several ids: {first}, {second}, …")
        if not found:
            raise NotFoundError(f"there is no log of {ref}")
        return found.pop()

    def _sources_of(self, ident: str) -> list[str]:
        if ident in self._sources:
            return [ident]
        if ident in self._calls:
            return [each for each in self._calls[ident] if each in self._sources]
        return [key for key, source in self._sources.items() if source.app_id == ident]

    def statistics(self) -> LogStatistics:
        """What the store holds and what it lost."""
        return LogStatistics(
            containers=len(self._sources),
            bytes=self._total,
            followers=sum(map(len, self._followers.values())),
            dropped=self._dropped,
        )


async def _followed(follower: _Follower) -> AsyncIterator[LogLine]:
    """New lines until the object ends. Waits as long as it lives: the reader cancels."""
    while True:
        while follower.lines:
            line = follower.lines.popleft()
            if follower.lost:
                lost, follower.lost = follower.lost, 0
                text = f"{lost} lines were lost: the reader was too slow"
                yield msgspec.structs.replace(line, stream="system", text=text)
            yield line
        if follower.is_over:
            return
        follower.filled.clear()
        await follower.filled.wait()


def _write(batch: dict[Path, bytes], doomed: list[Path]) -> int:
    """In the thread: append to each file, then delete; how many files could not be written."""
    failed = 0
    for path, data in batch.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("ab") as file:
                file.write(data)
        except OSError as error:
            failed += 1
            log.warning("log lines were lost", file=path.name, error=str(error))
    for path in doomed:
        path.unlink(missing_ok=True)
    return failed
