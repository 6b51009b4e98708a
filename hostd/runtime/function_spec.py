"""From a function to the specification of its container."""

from __future__ import annotations

import os
from pathlib import Path

from hostd.errors import ContainerStartError
from hostd.ids import ContainerId
from hostd.model import FunctionDefinition, ImageConfig
from hostd.runtime import rootfs, syscalls
from hostd.runtime.spec import BindMount, ContainerSpec

LIB_TARGET = "/run/hostd/lib"
IO_TARGET = "/run/hostd/io"
HOME = "/root"
"""Where the user's source lies, and the working directory unless the image names one."""
MIB = 2**20


def container_spec(
    container_id: ContainerId,
    function: FunctionDefinition,
    image: ImageConfig,
    *,
    root: Path,
    python: str,
    lib: Path,
    io: Path,
    memory_limit_bytes: int | None,
) -> ContainerSpec:
    """The container that runs the runner with this function.

    Args:
        python: path of the interpreter in the container.
        lib, io: directories of the host; both are read-only for the container, which needs no more
            to connect to a socket and cannot fill the host's memory through them.
    """
    spec = function.spec
    own = {
        "HOSTD_IS_REMOTE": "1",
        "HOSTD_CONTAINER_ID": container_id,
        "HOSTD_IMAGE_ID": function.layers[-1],
        "HOSTD_APP_ID": function.app_id,
        "HOSTD_FUNCTION": spec.name,
    }
    return ContainerSpec(
        id=container_id,
        rootfs=root,
        args=[python, f"{LIB_TARGET}/hostd/runner/boot.py", IO_TARGET],
        env={**image.env, **spec.env, **own},
        cwd=HOME if image.workdir in ("", "/") else image.workdir,
        user=image.user,
        mounts=[
            BindMount(source=lib, target=LIB_TARGET),
            BindMount(source=io, target=IO_TARGET),
        ],
        cpu_limit=spec.cpu_limit,
        memory_limit_bytes=memory_limit_bytes,
        pids_max=spec.pids_max,
        network="none" if spec.block_network else "bridge",
    )


def memory_limit_bytes(function: FunctionDefinition, default_mib: int) -> int | None:
    """Where the kernel kills: the limit, else the request, else the host's default (0: none)."""
    spec = function.spec
    limit_mib = spec.memory_limit_mib or spec.memory_mib or default_mib
    return limit_mib * MIB if limit_mib else None


def allow_source(root: Path, user: str) -> None:
    """Let a user who is not root read the source in ``/root`` of a container's own root; blocking.

    Raises:
        ContainerStartError: ``/root`` of the image is no directory.
    """
    if user.partition(":")[0] in ("", "0", "root"):
        return
    with rootfs.opened(root) as root_fd:
        rootfs.make_directory(root_fd, HOME)
        try:
            descriptor = syscalls.open_in_root(root_fd, HOME, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ContainerStartError(f"{HOME} of the image: {error.strerror}") from error
        try:
            os.fchmod(descriptor, 0o755)
        finally:
            os.close(descriptor)
