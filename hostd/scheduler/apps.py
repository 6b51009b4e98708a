"""The apps of this host, their functions, and who watches them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hostd.errors import AlreadyExistsError, NotFoundError
from hostd.ids import AppId, FunctionId
from hostd.model import ContainerEvent, LogLine
from hostd.scheduler.dispatch import Container, Pool
from hostd.scheduler.ports import AppSink, LogWriter

APPS_STOPPED_MAX = 200
"""Kept in memory, without their functions' queues, for those who ask why they stopped."""


@dataclass(slots=True, kw_only=True)
class App:
    """An app and its functions."""

    id: AppId
    name: str
    created_at_us: int
    pools: dict[FunctionId, Pool]
    sinks: list[AppSink] = field(default_factory=list)
    is_running: bool = True
    reason: str = ""
    """Why it stopped."""

    @property
    def containers(self) -> Iterator[Container]:
        """Those that have not ended."""
        return (each for pool in self.pools.values() for each in pool.containers.values())


class Apps:
    """Running apps, and those that stopped lately."""

    def __init__(self, logs: LogWriter | None) -> None:
        self._logs = logs
        self.running: dict[AppId, App] = {}
        self.stopped: OrderedDict[AppId, App] = OrderedDict()
        self.pools: dict[FunctionId, Pool] = {}
        """Functions of running apps."""

    def add(self, app: App) -> None:
        """Take a new app.

        Raises:
            AlreadyExistsError: its id or one of its functions' is in use.
        """
        if app.id in self.running or app.id in self.stopped:
            raise AlreadyExistsError(f"app {app.id} exists already")
        for function_id in app.pools:
            if function_id in self.pools:
                raise AlreadyExistsError(f"function {function_id} exists already")
        self.running[app.id] = app
        self.pools.update(app.pools)
        if self._logs is not None:
            self._logs.begin(app.id, app.id)

    def stop(self, app: App, reason: str) -> None:
        """Move it to those that stopped; nobody watches it any more."""
        app.is_running = False
        app.reason = reason
        del self.running[app.id]
        for function_id in app.pools:
            del self.pools[function_id]
        self.stopped[app.id] = app
        if len(self.stopped) > APPS_STOPPED_MAX:
            self.stopped.popitem(last=False)
        self._let_go(app)

    def container_gone(self, container: Container) -> None:
        """A container has ended: so has its log, and a stopped app with its last container."""
        if self._logs is not None:
            self._logs.end(container.id)
        app = self.stopped.get(container.pool.function.app_id)
        if app is not None:
            self._let_go(app)

    def _let_go(self, app: App) -> None:
        """Forget who watches a stopped app, once nothing of it is left."""
        if next(app.containers, None) is not None:
            return
        app.sinks.clear()
        if self._logs is not None:
            self._logs.end(app.id)

    def find(self, app_id: AppId) -> App:
        """A running or stopped app by its whole id.

        Raises:
            NotFoundError: there is none.
        """
        app = self.running.get(app_id) or self.stopped.get(app_id)
        if app is None:
            raise NotFoundError(f"app {app_id} does not exist")
        return app

    def all(self) -> Iterable[App]:
        """Running ones first, each group oldest first."""
        return [*self.running.values(), *self.stopped.values()]

    def announce(self, container: Container, state: str) -> None:
        """Tell those who watch the app that one of its containers changed."""
        app = self._of(container)
        if app is None or not app.sinks:
            return
        event = ContainerEvent(
            app=app.id,
            container=container.id,
            function=container.pool.function.spec.name,
            state=state,
            phases_us=container.launch_phases_us,
            reason=container.allocation.reason,
        )
        for sink in app.sinks:
            sink.container(event)

    def log(self, container: Container, line: LogLine) -> None:
        """Keep a line, and hand it to those who watch the app."""
        if self._logs is not None:
            self._logs.append(line, container.pool.function.app_id)
        app = self._of(container)
        if app is not None:
            for sink in app.sinks:
                sink.log(line, app.id)

    def _of(self, container: Container) -> App | None:
        # A stopped app's containers still write while they end.
        app_id = container.pool.function.app_id
        return self.running.get(app_id) or self.stopped.get(app_id)
