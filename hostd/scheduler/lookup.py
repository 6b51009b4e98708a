"""What the API asks the scheduler: lists, single objects by id or unique prefix, explanations.

Live objects come from memory; calls and containers that ended come from the last ones in memory and
then from the history file.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

from hostd.clock import Clock
from hostd.errors import ConflictError, NotFoundError
from hostd.ids import AppId, CallId, ContainerId
from hostd.model import AppInfo, CallInfo, ContainerInfo, Explanation
from hostd.scheduler import explain
from hostd.scheduler.calls import Call
from hostd.scheduler.dispatch import Container
from hostd.scheduler.engine import Engine
from hostd.scheduler.explain import HostView
from hostd.scheduler.views import SchedulerStatistics, app_info, call_info, container_info
from hostd.store import History

PREFIX_CHARS_MIN = 7
"""``fc-`` and four characters: shorter ones would soon stop to be unique."""
LIST_MAX = 1_000

T = TypeVar("T")


def whole_id(ref: str, ids: Iterable[str], kind: str) -> str | None:
    """The id that ``ref`` is or begins, or None.

    Raises:
        ConflictError: it begins several.
    """
    found = [each for each in ids if each.startswith(ref)] if len(ref) >= PREFIX_CHARS_MIN else []
    if ref in found or len(found) == 1:
        return ref if ref in found else found[0]
    if found:
        raise ConflictError(f"{ref} begins several {kind} ids: {found[0]}, {found[1]}, …")
    return None


class Lookup:
    """Questions about the scheduler's state; nothing here changes it."""

    def __init__(self, engine: Engine, *, clock: Clock, history: History | None) -> None:
        self._engine = engine
        self._clock = clock
        self._history = history

    def host(self) -> HostView:
        """This host, as explanations need it."""
        fleet = self._engine.fleet
        return HostView(
            now_us=self._clock.monotonic_us(),
            containers=len(fleet.containers),
            containers_max=fleet.containers_max,
            room=fleet.room,
            capacity=fleet.capacity,
            starting=fleet.starting,
            starts_max=fleet.starts_max,
        )

    def statistics(self) -> SchedulerStatistics:
        """Counters since the daemon started, and what there is now."""
        engine = self._engine
        pools = engine.apps.pools.values()
        return SchedulerStatistics(
            apps=len(engine.apps.running),
            containers=len(engine.fleet.containers),
            containers_starting=engine.fleet.starting,
            containers_max=engine.fleet.containers_max,
            containers_started=engine.fleet.started,
            calls_open=len(engine.answers.calls),
            calls_done=engine.answers.calls_done,
            inputs_queued=sum(pool.queued for pool in pools),
            inputs_running=sum(pool.busy for pool in pools),
            inputs_done=engine.answers.inputs_done,
            retries=engine.answers.retries,
            bytes_held=engine.answers.bytes_held,
        )

    # --- apps ----------------------------------------------------------------------------------

    def apps(self) -> list[AppInfo]:
        """Running apps, then those that stopped lately; newest first."""
        running, stopped = self._engine.apps.running, self._engine.apps.stopped
        ordered = [*reversed(running.values()), *reversed(stopped.values())]
        return [app_info(app) for app in islice(ordered, LIST_MAX)]

    def app(self, ref: str) -> AppInfo:
        """An app by id or unique prefix; NotFoundError, ConflictError."""
        apps = self._engine.apps
        found = whole_id(ref, [app.id for app in apps.all()], "app")
        return app_info(apps.find(AppId(found or ref)))

    # --- containers ----------------------------------------------------------------------------

    def containers(self, everything: bool = False) -> list[ContainerInfo]:
        """Live containers, newest first; with ``everything`` also those that ended lately."""
        live = [container_info(each) for each in reversed(self._engine.fleet.containers.values())]
        return [*live, *reversed(self._engine.ended.values())] if everything else live

    def container(self, ref: str) -> ContainerInfo:
        """A container by id or unique prefix; NotFoundError, ConflictError."""
        live, ended = self._engine.fleet.containers, self._engine.ended
        found = ContainerId(whole_id(ref, [*live, *ended], "container") or ref)
        if found in live:
            return container_info(live[found])
        if found in ended:
            return ended[found]
        raise NotFoundError(f"container {ref} does not exist, or ended long ago")

    def live_container(self, ref: str) -> Container:
        """A container that has not ended; NotFoundError, ConflictError."""
        live = self._engine.fleet.containers
        found = whole_id(ref, live, "container")
        if found is None:
            raise NotFoundError(f"container {ref} does not exist, or has ended")
        return live[ContainerId(found)]

    # --- calls ---------------------------------------------------------------------------------

    def _open_info(self, call: Call) -> CallInfo:
        return call_info(call, why=explain.why_open(call, self.host()))

    async def calls(self, *, limit: int = 50) -> list[CallInfo]:
        """Open calls, then ended ones; newest first."""
        answers = self._engine.answers
        found = [self._open_info(each) for each in islice(reversed(answers.calls.values()), limit)]
        left = limit - len(found)
        if left > len(answers.recent) and self._history is not None:
            return found + await self._history.calls(limit=left)
        return found + list(islice(reversed(answers.recent.values()), max(left, 0)))

    def open_call(self, ref: str) -> Call | None:
        """An open call by id or unique prefix."""
        calls = self._engine.answers.calls
        found = whole_id(ref, calls, "call")
        return calls[CallId(found)] if found is not None else None

    async def call(self, ref: str) -> CallInfo:
        """A call by id or unique prefix; NotFoundError, ConflictError."""
        call = self.open_call(ref)
        return self._open_info(call) if call is not None else await self._past_call(ref)

    async def _past_call(self, ref: str) -> CallInfo:
        recent = self._engine.answers.recent
        found = whole_id(ref, recent, "call")
        if found is not None:
            return recent[CallId(found)]
        past = None
        if self._history is not None and len(ref) >= PREFIX_CHARS_MIN:
            past = await self._history.call(ref)
        if past is None:
            raise NotFoundError(f"call {ref} does not exist")
        return past

    # --- explanations --------------------------------------------------------------------------

    async def explain(self, ref: str) -> Explanation:
        """Why this call, container, function or app is where it is; NotFoundError."""
        kind = ref.partition("-")[0]
        if kind == "fc":
            call = self.open_call(ref)
            if call is not None:
                return explain.open_call(call, self.host())
            return explain.past_call(await self._past_call(ref))
        if kind == "ct":
            return await self._explain_container(ref)
        if kind == "fu":
            pools = {str(key): pool for key, pool in self._engine.apps.pools.items()}
            found = whole_id(ref, pools, "function")
            if found is not None:
                return explain.function(pools[found], self.host())
        if kind == "ap":
            return self._explain_app(ref)
        raise NotFoundError(f"{ref} is no call, container, function or app that is known here")

    async def _explain_container(self, ref: str) -> Explanation:
        live = self._engine.fleet.containers
        found = whole_id(ref, live, "container")
        if found is not None:
            return explain.live_container(live[ContainerId(found)], self.host())
        ended = self._engine.ended
        found = whole_id(ref, ended, "container")
        if found is not None:
            return explain.past_container(ended[ContainerId(found)])
        past = None
        if self._history is not None and len(ref) >= PREFIX_CHARS_MIN:
            past = await self._history.container(ref)
        if past is None:
            raise NotFoundError(f"container {ref} does not exist")
        return explain.past_container(past)

    def _explain_app(self, ref: str) -> Explanation:
        apps = self._engine.apps
        app = apps.find(AppId(whole_id(ref, [each.id for each in apps.all()], "app") or ref))
        if not app.is_running:
            return Explanation(id=app.id, sentence=f"{app.id} {app.name} stopped: {app.reason}")
        functions = [explain.function(pool, self.host()) for pool in app.pools.values()]
        containers = sum(len(pool.containers) for pool in app.pools.values())
        waiting = sum(pool.queued for pool in app.pools.values())
        return Explanation(
            id=app.id,
            sentence=f"{app.id} {app.name} runs {containers} containers; {waiting} inputs wait",
            lines=[each.sentence for each in functions],
        )
