"""The door to this package: makes containers, and leaves nothing behind.

``Runtime.start`` first removes everything an earlier daemon of the same run directory left, then
prepares what does not depend on a container: the network, namespaces, the OCI runtime's figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hostd.clock import Clock
from hostd.config import RuntimeConfig
from hostd.errors import AlreadyExistsError, ConflictError, ContainerStartError, InvalidError
from hostd.log import get_logger
from hostd.runtime import rootfs, sweep
from hostd.runtime.bundle import INIT_TARGET, HostLimits, Placement, make_config, mount_targets
from hostd.runtime.cgroup import CgroupTree, leave_visible_root
from hostd.runtime.container import Container, Host, Made
from hostd.runtime.naming import Names
from hostd.runtime.netns import NetworkNamespace
from hostd.runtime.network import Network
from hostd.runtime.oci import OCIRuntime, RuntimeProgram, find_program
from hostd.runtime.orphans import OrphanReaper
from hostd.runtime.output import ContainerOutput
from hostd.runtime.pty import console_socket
from hostd.runtime.spawn import Process, Stdio, adopt_orphans
from hostd.runtime.spec import BindMount, ContainerSpec, OutputSink

log = get_logger(__name__)

CREATING_PER_CPU = 4
"""Containers that are created at the same time: best at 2-4 per core (measured); more only queue in
the kernel."""

THREADS = 8
"""For file work that may wait for the image's file system."""

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """Counts since the start."""

    containers: int
    created: int
    failed: int


class Runtime:
    """Makes and keeps the containers of one daemon."""

    def __init__(self, *, config: RuntimeConfig, run_dir: Path, clock: Clock) -> None:
        self._config = config
        self._run_dir = run_dir
        self._clock = clock
        self._names = Names.of(run_dir)
        self._containers: dict[str, Container] = {}
        self._namespaces: dict[str, NetworkNamespace] = {}
        self._ids: set[str] = set()
        self._creating = asyncio.Semaphore(CREATING_PER_CPU * (os.cpu_count() or 1))
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="hostd-runtime")
        self._network = Network(names=self._names, run_dir=run_dir, subnet=config.subnet)
        self._orphans = OrphanReaper()
        self._init = shutil.which("catatonit")
        self._host: Host | None = None
        self._lock_fd = -1
        self._created = self._failed = self._in_creation = 0

    @property
    def program(self) -> RuntimeProgram:
        """The OCI runtime in use."""
        return self._ready().oci.program

    @property
    def network(self) -> Network:
        """Addresses and namespaces."""
        return self._network

    def container(self, name: str) -> Container:
        """A container that runs, by its id.

        Raises:
            ConflictError: it is not created yet, or has ended.
        """
        try:
            return self._containers[name]
        except KeyError:
            raise ConflictError(f"container {name} does not run") from None

    def statistics(self) -> RuntimeStatistics:
        """Counts for status pages."""
        return RuntimeStatistics(len(self._containers), self._created, self._failed)

    async def start(self) -> None:
        """Sweep, probe the OCI runtime, set up the network.

        Raises:
            ConflictError: another daemon runs on this run directory.
            ConfigError: the OCI runtime is missing.
            ContainerStartError: the network cannot be set up.
        """
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = _lock(self._run_dir / "runtime.lock")
        try:
            adopt_orphans()
            loop = asyncio.get_running_loop()
            self._host = await loop.run_in_executor(self._executor, self._prepare_host)
            await self._network.start()
            self._orphans.begin()
        except BaseException:
            await self.close()
            raise

    def _prepare_host(self) -> Host:
        tree = CgroupTree.read()
        places = sweep.Places(self._names, tree, self._run_dir)
        swept = sweep.remove_everything(places)
        if swept != sweep.Swept():
            log.info("leftovers of an earlier daemon removed", processes=swept.processes,
                     cgroups=swept.cgroups, mounts=swept.mounts, directories=swept.directories,
                     complete=swept.complete)  # fmt: skip
        leave_visible_root(tree, self._names.cgroup)
        for directory in (places.states, places.bundles, places.consoles, places.netns):
            directory.mkdir(mode=0o700, exist_ok=True)
        program = find_program(self._config.oci)
        return Host(
            oci=OCIRuntime(program, root=places.states, tree=tree),
            places=places,
            limits=HostLimits.read(
                swap_accounting=tree.has_swap_accounting(), pure_v2=tree.version == "v2"
            ),
            executor=self._executor,
        )

    async def close(self) -> None:
        """End and remove all containers, then everything else; may be repeated."""
        if self._lock_fd < 0:
            return
        results = await asyncio.gather(
            *(c.delete() for c in list(self._containers.values())), return_exceptions=True
        )
        for error in results:
            if isinstance(error, BaseException):
                log.error("container not removed", error=str(error))
        await self._network.close()
        if self._host is not None:
            await asyncio.to_thread(sweep.remove_everything, self._host.places)
            self._host.oci.close()
            self._host = None
        await self._orphans.end()
        self._executor.shutdown()
        os.close(self._lock_fd)
        self._lock_fd = -1

    async def create(self, spec: ContainerSpec, output: OutputSink) -> Container:
        """Make a container up to the point where only ``Container.start`` is missing.

        When this raises or is cancelled, nothing is left of the container.

        Raises:
            ContainerStartError: the rootfs, the user or the OCI runtime.
            ResourceExhaustedError: no address is free.
            AlreadyExistsError: a container of this id is there.
        """
        host = self._ready()
        _check(spec)
        if spec.id in self._ids:
            raise AlreadyExistsError(f"container {spec.id} exists")
        self._ids.add(spec.id)
        try:
            async with self._creating:
                container = await self._create_warm(spec, output, host)
        except BaseException:
            self._failed += 1
            self._ids.discard(spec.id)
            raise
        self._containers[spec.id] = container
        self._created += 1
        return container

    def mount_targets(self, spec: ContainerSpec) -> tuple[str, ...]:
        """Paths of the rootfs that starting this container makes; they are no part of a layer."""
        return mount_targets(spec)

    async def _create_warm(self, spec: ContainerSpec, output: OutputSink, host: Host) -> Container:
        if not self._in_creation:
            self._executor.submit(host.places.tree.warm_up)
        self._in_creation += 1
        try:
            namespace = await self._network.take(spec.network, spec.opened)
            try:
                container = await self._create(spec, output, host, namespace)
            except BaseException:
                await asyncio.shield(self._abandon(spec.id, host, namespace))
                raise
            self._namespaces[spec.id] = namespace
            return container
        finally:
            self._in_creation -= 1

    async def _create(
        self, spec: ContainerSpec, sink: OutputSink, host: Host, namespace: NetworkNamespace
    ) -> Container:
        loop = asyncio.get_running_loop()
        user = await loop.run_in_executor(
            self._executor, self._prepare_container, spec, host, namespace
        )
        if spec.tty is not None:
            return await self._create_with_terminal(spec, host, user, namespace)
        output = ContainerOutput(sink, clock=self._clock, bytes_max=self._config.log_bytes_max)
        stdin = _stdin(spec.stdin)
        try:
            pid = await host.oci.create(
                spec.id,
                host.places.bundles / spec.id,
                stdio=Stdio(stdin, *output.write_fds),
                console=None,
            )
            return self._adopt(spec, user, pid, namespace, output=output, master=None)
        except BaseException:
            output.discard()
            raise
        finally:
            if stdin >= 0:
                os.close(stdin)

    async def _create_with_terminal(
        self, spec: ContainerSpec, host: Host, user: rootfs.User, namespace: NetworkNamespace
    ) -> Container:
        bundle = host.places.bundles / spec.id
        with console_socket(host.places.consoles) as console:
            pid = await host.oci.create(spec.id, bundle, stdio=Stdio(), console=console.path)
            master = await console.receive()
        try:
            return self._adopt(spec, user, pid, namespace, output=None, master=master)
        except BaseException:
            os.close(master)
            raise

    def _adopt(
        self,
        spec: ContainerSpec,
        user: rootfs.User,
        pid: int,
        namespace: NetworkNamespace,
        *,
        output: ContainerOutput | None,
        master: int | None,
    ) -> Container:
        host = self._ready()
        cgroup = host.places.tree.of_process(pid, self._names.cgroup)
        if not cgroup:  # It has ended already: a zombie is in no group.
            cgroup = host.places.tree.named(self._names.cgroup, spec.id)
        made = Made(
            process=Process(pid),
            cgroup=cgroup,
            user=user,
            address=str(namespace.address) if namespace.address is not None else None,
            output=output,
            master=master,
        )
        return Container(spec, made, host=host, on_deleted=self._forget)

    def _prepare_container(
        self, spec: ContainerSpec, host: Host, namespace: NetworkNamespace
    ) -> rootfs.User:
        """Make the bundle and everything the OCI runtime would otherwise make in a hostile root."""
        bundle = host.places.bundles / spec.id
        bundle.mkdir(mode=0o700)
        hostname = spec.hostname or spec.id[-12:]
        (bundle / "hosts").write_text(_hosts(hostname, namespace))
        (bundle / "hosts").chmod(0o644)
        files = [
            BindMount(source=self._network.resolv_conf, target="/etc/resolv.conf"),
            BindMount(source=bundle / "hosts", target="/etc/hosts"),
        ]
        if spec.init:
            if self._init is None:
                raise ContainerStartError(
                    "catatonit is not installed", hint="install the package catatonit"
                )
            files.append(BindMount(source=Path(self._init), target=INIT_TARGET))
        with rootfs.opened(spec.rootfs) as root_fd:
            rootfs.check_pseudo_directories(root_fd)
            user = rootfs.resolve_user(root_fd, spec.user)
            for mount in (*files, *spec.mounts):
                directory = mount.source.is_dir()
                rootfs.ensure_mount_point(root_fd, mount.target, directory=directory)
            rootfs.make_directory(root_fd, "/tmp", 0o1777)
            rootfs.make_directory(root_fd, spec.cwd)
        placement = Placement(
            cgroup=f"/{self._names.cgroup}/{spec.id}",
            user=user,
            netns=namespace.path,
            files=tuple(files),
        )
        config = json.dumps(make_config(spec, placement, host.limits))
        (bundle / "config.json").write_text(config)
        return user

    async def _abandon(self, container_id: str, host: Host, namespace: NetworkNamespace) -> None:
        loop = asyncio.get_running_loop()
        gone = await loop.run_in_executor(
            self._executor, sweep.remove_unfinished, host.places, container_id
        )
        if not gone:
            log.error("half-made container not removed", container=container_id)
        self._network.release(namespace)

    def _forget(self, container: Container) -> None:
        self._containers.pop(container.id, None)
        self._ids.discard(container.id)
        namespace = self._namespaces.pop(container.id, None)
        if namespace is not None:
            self._network.release(namespace)

    def _ready(self) -> Host:
        if self._host is None:
            raise ConflictError("the container runtime is not started")
        return self._host


def _check(spec: ContainerSpec) -> None:
    if _ID.fullmatch(spec.id) is None:
        raise InvalidError(f"container id {spec.id!r} is not lower-case letters, digits and '-'")
    if not spec.args:
        raise InvalidError("container has no command")
    rootfs.check_cwd(spec.cwd)


def _hosts(hostname: str, namespace: NetworkNamespace) -> str:
    own = f"{namespace.address or '127.0.1.1'} {hostname}\n"
    return f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own}"


def _stdin(data: bytes | None) -> int:
    """A descriptor that yields these bytes; memory, so nothing has to be pumped."""
    if data is None:
        return Stdio().stdin
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        stack.pop_all()
    return fd


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConflictError(f"another daemon runs on {path.parent}") from error
    return fd
