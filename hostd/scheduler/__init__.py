"""Which container runs which input, and when containers start and end.

``Scheduler`` is the door; the protocols it needs and offers are in ``ports``. See DESIGN.md.
"""

from hostd.scheduler.ports import (
    AppSink,
    CallSink,
    ContainerEvents,
    ContainerHandle,
    ContainerLauncher,
    LogWriter,
    Timer,
    Timers,
)
from hostd.scheduler.service import CallKind, Scheduler
from hostd.scheduler.views import SchedulerStatistics

__all__ = [
    "AppSink",
    "CallKind",
    "CallSink",
    "ContainerEvents",
    "ContainerHandle",
    "ContainerLauncher",
    "LogWriter",
    "Scheduler",
    "SchedulerStatistics",
    "Timer",
    "Timers",
]
