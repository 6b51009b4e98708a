"""Records of ``hostd.model`` made from the scheduler's state."""

from __future__ import annotations

from dataclasses import dataclass

from hostd.model import AppInfo, CallInfo, ContainerInfo, FunctionInfo
from hostd.scheduler.apps import App
from hostd.scheduler.calls import Call
from hostd.scheduler.dispatch import Container, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """Counters since the daemon started, and what there is now."""

    apps: int
    containers: int
    containers_starting: int
    containers_max: int
    containers_started: int
    calls_open: int
    calls_done: int
    inputs_queued: int
    inputs_running: int
    inputs_done: int
    retries: int
    bytes_held: int


def app_info(app: App) -> AppInfo:
    """An app as the API shows it."""
    return AppInfo(
        id=app.id,
        name=app.name,
        state="running" if app.is_running else "stopped",
        created_at_us=app.created_at_us,
        functions=[_function_info(pool) for pool in app.pools.values()],
        reason=app.reason,
    )


def _function_info(pool: Pool) -> FunctionInfo:
    return FunctionInfo(
        id=pool.function.id,
        name=pool.function.spec.name,
        app_id=pool.function.app_id,
        image_id=pool.function.spec.image_id,
        containers=len(pool.containers),
        inputs_queued=pool.queued,
        inputs_running=pool.busy,
    )


def container_info(container: Container) -> ContainerInfo:
    """A container as ``hostctl ps`` shows it."""
    pool = container.pool
    head = container.head
    handle = container.handle
    usage = handle.usage() if handle is not None else None
    return ContainerInfo(
        id=container.id,
        function_id=pool.function.id,
        function=pool.function.spec.name,
        app_id=pool.function.app_id,
        app=pool.app_name,
        image_id=pool.function.spec.image_id,
        state=container.state,  # type: ignore[arg-type]  # the literal's names, by ui-spec A1
        started_at_us=container.begun_wall_us,
        inputs_done=container.inputs_done,
        pid=handle.pid if handle is not None else None,
        memory_bytes=usage.memory_bytes if usage is not None else None,
        cpu_s=usage.cpu_s if usage is not None else None,
        call_id=head.call.id if head is not None else None,
        reason=container.allocation.reason,
    )


def call_info(call: Call, *, why: str) -> CallInfo:
    """A call as the API shows it."""
    ended_us = call.ended_us - call.begun_us if not call.is_open else None
    return CallInfo(
        id=call.id,
        app_id=call.app_id,
        function_id=call.function_id,
        function=call.function_name,
        kind=call.kind,  # type: ignore[arg-type]  # checked where it came in (model.CallOpen)
        state=call.state.value,
        created_at_us=call.created_at_us,
        finished_at_us=None if ended_us is None else call.created_at_us + ended_us,
        inputs_total=call.total,
        inputs_done=call.done,
        inputs_failed=call.failed,
        phases_us=call.phases_us,
        start=call.start,  # type: ignore[arg-type]  # "cold" or "warm", set in service.py
        container_id=call.container_id,
        error=call.error,
        why=why,
    )
