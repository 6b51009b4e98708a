"""Containers: OCI bundles, control groups, seccomp, the network, output, clean-up.

``Runtime`` makes containers from a ``ContainerSpec``; ``Launcher`` puts the runner into them and so
makes functions of them. See DESIGN.md and ``hostd/runner/DESIGN.md``.
"""

from hostd.runtime.container import Container, ExecProcess
from hostd.runtime.launcher import (
    ContainerEvents,
    FunctionContainer,
    Launcher,
    LauncherStatistics,
)
from hostd.runtime.runtime import Runtime, RuntimeStatistics
from hostd.runtime.spec import BindMount, ContainerExit, ContainerSpec, OutputSink, Usage
from hostd.runtime.streams import Streams

__all__ = [
    "BindMount",
    "Container",
    "ContainerEvents",
    "ContainerExit",
    "ContainerSpec",
    "ExecProcess",
    "FunctionContainer",
    "Launcher",
    "LauncherStatistics",
    "OutputSink",
    "Runtime",
    "RuntimeStatistics",
    "Streams",
    "Usage",
]
