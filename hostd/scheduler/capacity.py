"""What the host has and what its containers were promised: pure arithmetic.

A function's ``cpu`` and ``memory`` are what its containers are promised; together the promises
never exceed what the host has. A function that asks for nothing is promised nothing and always
fits: ``limits.containers_max`` alone bounds those. What a container may use at most is another
matter (``cpu_limit``, ``memory_limit``) and is the kernel's to enforce.
"""

from __future__ import annotations

from dataclasses import dataclass

from hostd.errors import NoCapacityError
from hostd.model import FunctionSpec

_CPU_SLACK = 1e-9
"""Promises are sums of decimal fractions: ten times 0.1 must fit one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Processor time in cores, memory in MiB."""

    cpu: float = 0.0
    memory_mib: int = 0

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(cpu=self.cpu + other.cpu, memory_mib=self.memory_mib + other.memory_mib)

    def minus(self, other: Resources) -> Resources:
        """What is left of it."""
        return Resources(cpu=self.cpu - other.cpu, memory_mib=self.memory_mib - other.memory_mib)

    def fits(self, room: Resources) -> bool:
        """Whether there is room for it."""
        is_enough_cpu = self.cpu <= room.cpu + _CPU_SLACK or not self.cpu
        return is_enough_cpu and (self.memory_mib <= room.memory_mib or not self.memory_mib)

    def __str__(self) -> str:
        return f"cpu={max(self.cpu, 0.0):g} and memory={max(self.memory_mib, 0)} MiB"


NOTHING = Resources()


def demand_of(spec: FunctionSpec) -> Resources:
    """What each container of a function is promised."""
    return Resources(cpu=spec.cpu or 0.0, memory_mib=spec.memory_mib or 0)


def check_possible(spec: FunctionSpec, host: Resources) -> None:
    """Refuse what could never run here.

    Raises:
        NoCapacityError: the function asks for more than the host has, even when it is idle.
    """
    demand = demand_of(spec)
    if demand.cpu > host.cpu + _CPU_SLACK:
        raise NoCapacityError(
            f"no host has cpu={demand.cpu:g}, which function {spec.name} asks for"
            f" (the largest has {host.cpu:g})",
            hint="ask for less cpu",
        )
    if demand.memory_mib > host.memory_mib:
        raise NoCapacityError(
            f"no host has memory={demand.memory_mib} MiB, which function {spec.name} asks for"
            f" (the largest has {host.memory_mib})",
            hint="ask for less memory",
        )
