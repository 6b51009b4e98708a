"""A real daemon in its own process, for tests and benchmarks: start, stop, kill -9, restart.

Run directories are short and unique; everything a daemon made is checked to be gone by ``tests.census``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hostd.errors import Error
from hostd.fs import CAS, ImageStore
from hostd.ids import ImageId
from hostd.sdk.client import Client

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("HOSTD_TEST_CACHE", f"/var/tmp/hostd-test-{os.getuid()}-v1"))
"""Where the data directory with the base image is kept between runs."""
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class DaemonProcess:
    """One ``hostd agent``; a context manager that stops it and removes its run directory."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.data_dir = data_dir
        self.run_dir = Path(
            tempfile.mkdtemp(prefix="hostd-t-", dir="/run" if os.getuid() == 0 else None)
        )
        self.settings = {"api.listen": "", **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = self.run_dir.parent / f"{self.run_dir.name}.log"
        self._client = Client(socket_path=str(self.socket))

    @property
    def socket(self) -> Path:
        return self.run_dir / "hostd.sock"

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which hostctl and the SDK talk to this daemon."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HOSTD_")}
        return {**kept, "HOSTD_SOCKET": str(self.socket), "PYTHONPATH": str(ROOT)}

    def client(self) -> Client:
        """A client of this daemon; closed with it."""
        return self._client

    def start(self) -> DaemonProcess:
        flags = []
        for key, value in self.settings.items():
            flags += ["--" + key.replace(".", "-").replace("_", "-"), str(value)]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HOSTD_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hostd.daemon", "agent", "--data-dir", str(self.data_dir),
                 "--run-dir", str(self.run_dir), *flags],
                cwd=ROOT, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the daemon ended with {self.process.returncode}:\n{self.log()}"
                )
            try:
                self.client().request("GET", "/healthz", timeout=2)
            except (Error, OSError):
                if time.monotonic() > deadline:
                    raise AssertionError(f"the daemon is not ready:\n{self.log()}") from None
                time.sleep(0.02)
            else:
                return

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-20_000:]

    def kill9(self) -> None:
        """Kill the daemon alone: what it started stays."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            raise AssertionError(f"the daemon did not stop:\n{self.log()}") from None

    def __enter__(self) -> DaemonProcess:
        return self.start() if self.process is None else self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is not None:
            self.start()  # It was killed: a restart cleans up what it left.
        self.stop()
        self._client.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.log_path.unlink(missing_ok=True)

    def hostctl(
        self, *args: str, timeout_s: float = 120, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run hostctl against this daemon."""
        return subprocess.run(
            [sys.executable, "-m", "hostd.cli", *args], env={**self.environ, **kwargs.pop("env", {})},
            capture_output=True, text=True, timeout=timeout_s, **kwargs,
        )  # fmt: skip


def shared_data_dir() -> Path:
    """The data directory that keeps built images between test runs; one daemon at a time may use it."""
    path = CACHE / "data"
    path.mkdir(parents=True, exist_ok=True)
    return path


def copy_image(image: ImageId, destination: Path) -> None:
    """A data directory of its own that has one image of the shared one, and may be damaged."""
    shared = shared_data_dir()
    source, copy = CAS(shared / "cas"), CAS(destination / "cas")
    images = ImageStore(source, shared / "images")
    for blob in images.blobs(image):
        shutil.copyfile(source.path(blob), copy.path(blob))
    (destination / "images").mkdir()
    shutil.copy(shared / "images" / f"{image}.json", destination / "images")
    for path in shared.glob("state.db*"):
        shutil.copy(path, destination)
