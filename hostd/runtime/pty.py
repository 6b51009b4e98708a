"""The console socket: how an OCI runtime hands over the terminal it made inside the container.

The runtime connects to a unix socket and sends the master's descriptor (SCM_RIGHTS) while it
creates the process, so it is waiting there when the command has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hostd.errors import ContainerStartError
from hostd.runtime.streams import wait_readable

HAND_OVER_TIMEOUT_S = 5.0
NAME_BYTES_MAX = 4096

_serial = itertools.count(1)


class ConsoleSocket:
    """Listens for one terminal. Used with ``console_socket``, which removes its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            self._listener.listen(1)
            self._listener.setblocking(False)
        except OSError:
            self._listener.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        self.path.unlink(missing_ok=True)

    async def receive(self) -> int:
        """The master side of the terminal; the caller owns the descriptor.

        Raises:
            ContainerStartError: the runtime did not hand over a terminal.
        """
        try:
            await wait_readable([self._listener.fileno()], timeout_s=HAND_OVER_TIMEOUT_S)
            connection, _ = self._listener.accept()
        except (TimeoutError, OSError) as error:
            raise ContainerStartError("the OCI runtime did not connect a terminal") from error
        with connection:
            connection.setblocking(False)
            try:
                await wait_readable([connection.fileno()], timeout_s=HAND_OVER_TIMEOUT_S)
                _, fds, _, _ = socket.recv_fds(connection, NAME_BYTES_MAX, 1)
            except (TimeoutError, OSError) as error:
                raise ContainerStartError("the OCI runtime did not send a terminal") from error
        if len(fds) != 1 or not os.isatty(fds[0]):
            for fd in fds:
                os.close(fd)
            raise ContainerStartError("the OCI runtime sent something that is no terminal")
        os.set_inheritable(fds[0], False)
        return fds[0]


@contextlib.contextmanager
def console_socket(directory: Path) -> Iterator[ConsoleSocket]:
    """A console socket in a directory; names are short, as socket paths must be."""
    directory.mkdir(mode=0o700, exist_ok=True)
    console = ConsoleSocket(directory / f"{next(_serial):x}")
    try:
        yield console
    finally:
        console.close()
