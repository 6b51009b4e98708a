"""Faults of the host: processes killed, clients gone, damaged and absent content, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostd.ids import ImageId
from tests.daemon_process import DaemonProcess, copy_image, shared_data_dir

SLEEPER = """
import hostd, time
app = hostd.App("sleeper")

@app.function(image=hostd.Image.debian_slim(), max_containers=2)
def nap(n: int) -> int:
    print("napping", n, flush=True)
    time.sleep(120 if n < 0 else 0.2)
    return n

@app.local_entrypoint()
def many() -> None:
    print("sum", sum(nap.map(range(60))))
"""


def wait_for(condition, what, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def start(daemon, *args):
    return subprocess.Popen([sys.executable, "-m", "hostd.cli", *args], env=daemon.environ,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def busy(daemon):
    rows = daemon.client().request("GET", "/api/v1/containers")["items"]
    return [row for row in rows if row["state"] == "busy"]


def alive(pid):
    """Whether the process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def own_daemon():
    with DaemonProcess(shared_data_dir()) as process:
        yield process


def test_client_killed_in_the_middle_of_a_call_frees_its_container(own_daemon, program):
    run = start(own_daemon, "run", f"{program(SLEEPER)}::nap", "--", "-1")
    (row,) = wait_for(lambda: busy(own_daemon), "no container became busy")
    run.kill()
    run.communicate()
    wait_for(lambda: not alive(row["pid"]), "the container outlived its client")
    apps = own_daemon.client().request("GET", "/api/v1/apps")["items"]
    assert all(app["state"] == "stopped" for app in apps)


def test_ctrl_c_cancels_remotely_and_exits_130(own_daemon, program):
    run = start(own_daemon, "run", f"{program(SLEEPER)}::nap", "--", "-1")
    (row,) = wait_for(lambda: busy(own_daemon), "no container became busy")
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    wait_for(lambda: not alive(row["pid"]), "the container went on after Ctrl-C")


def test_daemon_killed_during_a_map_ends_it_with_a_typed_error_and_restarts_clean(
    own_daemon, program
):
    run = start(own_daemon, "run", str(program(SLEEPER)))
    rows = wait_for(lambda: busy(own_daemon), "no container became busy")
    own_daemon.kill9()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 6, errors
    assert "Traceback" not in errors
    own_daemon.start()
    assert not [row["pid"] for row in rows if alive(row["pid"])]
    assert own_daemon.client().request("GET", "/api/v1/containers")["items"] == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert f"{own_daemon.run_dir}/ct/" not in mounts
    done = own_daemon.hostctl("run", f"{program(SLEEPER)}::nap", "3")
    assert done.returncode == 0, done.stderr


def test_daemon_killed_during_a_build_leaves_nothing_and_the_build_works_again(
    own_daemon, tmp_path
):
    (tmp_path / "Dockerfile").write_text(
        f"FROM debian:bookworm-slim\nRUN echo {os.getpid()} {time.monotonic_ns()}; sleep 3; echo made > /made\n"
    )
    build = start(own_daemon, "build", str(tmp_path))
    wait_for(
        lambda: "overlay" in mounts_below(own_daemon.run_dir, own_daemon.data_dir),
        "no build step began",
    )
    own_daemon.kill9()
    _, errors = build.communicate(timeout=60)
    assert build.returncode == 6, errors
    own_daemon.start()
    assert "overlay" not in mounts_below(own_daemon.run_dir, own_daemon.data_dir)
    done = own_daemon.hostctl("build", str(tmp_path))
    assert done.returncode == 0, done.stderr


def mounts_below(*folders):
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    rows = [line.split() for line in lines]
    return {
        row[row.index("-") + 1] for row in rows if any(row[4].startswith(str(f)) for f in folders)
    }


@pytest.mark.parametrize("mode", ["erofs", "fuse"])
def test_hostd_fs_killed_under_a_running_container_is_replaced(mode, program):
    with DaemonProcess(shared_data_dir(), **{"fs.mode": mode}) as daemon:
        run = start(daemon, "run", str(program(SLEEPER)))
        wait_for(lambda: busy(daemon), "no container became busy")
        (pid,) = fs_server_pids(daemon)
        os.kill(pid, signal.SIGKILL)
        out, errors = run.communicate(timeout=90)
        if mode == "erofs":
            assert run.returncode == 0, errors
            assert "sum 1770" in out
        wait_for(
            lambda: fs_server_pids(daemon) not in ([], [pid]), "hostd-fs was not started again"
        )
        done = daemon.hostctl("run", f"{program(SLEEPER)}::nap", "3")
        assert done.returncode == 0, done.stderr
        dead = [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f"{daemon.run_dir}/fs " in line
        ]
        assert len(dead) == 1


def fs_server_pids(daemon):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hostd.fs.server" in command and str(daemon.run_dir).encode() in b" ".join(command):
            found.append(int(path.parent.name))
    return found


def damage(data_dir):
    """Flip a bit in each of the largest blobs: those of Python are among them."""
    objects = (data_dir / "cas" / "objects").glob("*/*")
    for blob in sorted(objects, key=lambda path: path.stat().st_size)[-40:]:
        flip_bit(blob)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


@pytest.mark.parametrize("mode", ["erofs", "fuse"])
def test_a_flipped_bit_in_a_blob_is_never_served(mode, program):
    with DaemonProcess(shared_data_dir()) as daemon:
        done = daemon.hostctl("run", f"{program(SLEEPER)}::nap", "3")  # The image is there now.
        assert done.returncode == 0, done.stderr
        call = json.loads(daemon.hostctl("ps", "--all", "--json").stdout)["items"][0]
    data_dir = shared_data_dir().parent / f"damaged-{mode}"
    shutil.rmtree(data_dir, ignore_errors=True)
    copy_image(ImageId(call["image_id"]), data_dir)
    healthy = shared_data_dir() / "cas" / "objects"
    try:
        damage(data_dir)
        with DaemonProcess(data_dir, **{"fs.mode": mode, "fs.source_dir": healthy}) as daemon:
            done = daemon.hostctl("run", f"{program(SLEEPER)}::nap", "3")
            assert done.returncode == 0, done.stderr
        damage(data_dir)
        with DaemonProcess(data_dir, **{"fs.mode": mode}) as daemon:
            done = daemon.hostctl("run", f"{program(SLEEPER)}::nap", "3")
            assert done.returncode not in (0, 130), done.stdout
            assert "blob" in done.stderr
    finally:
        shutil.rmtree(data_dir)


def test_a_full_data_directory_is_a_typed_error_and_the_store_stays_intact(program, tmp_path):
    folder = Path(f"/run/hostd-full-{os.getpid()}")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        with DaemonProcess(folder / "data") as daemon:
            (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY big /big\n")
            (tmp_path / "big").write_bytes(os.urandom(100 * 2**20))
            done = daemon.hostctl("build", str(tmp_path))
            assert done.returncode != 0
            assert "space" in done.stderr
            assert "Traceback" not in done.stderr
            (tmp_path / "big").write_bytes(b"small now")
            again = daemon.hostctl("build", str(tmp_path), "--name", "fits")
            assert again.returncode == 0, again.stderr
            names = json.loads(daemon.hostctl("image", "show", "fits", "--json").stdout)["names"]
            assert names == ["fits"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_a_second_daemon_on_the_same_directories_is_refused(own_daemon):
    second = subprocess.run(
        [sys.executable, "-m", "hostd.daemon", "agent", "--data-dir", str(own_daemon.data_dir),
         "--run-dir", str(own_daemon.run_dir) + "x", "--api-listen", ""],
        env=own_daemon.environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert second.returncode == 5
    assert "in use" in second.stderr


def test_a_clean_stop_leaves_nothing_behind(program):
    with DaemonProcess(shared_data_dir()) as daemon:
        run = start(daemon, "run", f"{program(SLEEPER)}::nap", "--", "-1")
        (row,) = wait_for(lambda: busy(daemon), "no container became busy")
        assert daemon.stop() == 0
        _, errors = run.communicate(timeout=30)
        assert run.returncode == 6, errors
        assert not alive(row["pid"])
        assert mounts_below(daemon.run_dir, daemon.data_dir) == set()
        assert fs_server_pids(daemon) == []
