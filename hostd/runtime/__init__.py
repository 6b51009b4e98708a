"""Containers: OCI bundles, control groups, seccomp, the network, output, clean-up.

``Runtime`` makes containers from a ``ContainerSpec``; see DESIGN.md. The launcher, which puts the
runner into them, is ``hostd.runtime.launcher``.
"""

from hostd.runtime.container import Container, ExecProcess
from hostd.runtime.runtime import Runtime, RuntimeStatistics
from hostd.runtime.spec import BindMount, ContainerExit, ContainerSpec, OutputSink, Usage
from hostd.runtime.streams import Streams

__all__ = [
    "BindMount",
    "Container",
    "ContainerExit",
    "ContainerSpec",
    "ExecProcess",
    "OutputSink",
    "Runtime",
    "RuntimeStatistics",
    "Streams",
    "Usage",
]
