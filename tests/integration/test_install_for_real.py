"""install.sh for real: install, install again, uninstall, in a mount namespace of its own.

Overlays on /etc and /usr/local/bin take what is written there; /run is empty but for the directory
that says "systemd runs here", and ``systemctl`` is a stub that notes what it is asked.
"""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600
ISOLATE = """
set -eu
mount --make-rprivate /
# Overlays refuse an upper directory on some file systems: a tmpfs serves anywhere.
mount -t tmpfs tmpfs "$W/fs"
for place in /etc /usr/local/bin; do
    mkdir -p "$W/fs/upper$place" "$W/fs/work$place"
    layers="lowerdir=$place,upperdir=$W/fs/upper$place,workdir=$W/fs/work$place"
    mount -t overlay overlay -o "$layers" "$place"
done
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
"""
STUB = """#!/bin/sh
echo "$*" >> "$W/systemctl.log"
"""


@pytest.fixture
def isolated(tmp_path):
    """Runs a shell script where nothing that it writes outlives it, but below ``tmp_path``."""
    top = tmp_path / "w"
    for name in ("bin", "fs"):
        (top / name).mkdir(parents=True)
    stub = top / "bin" / "systemctl"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environ = {**os.environ, "W": str(top), "PATH": f"{top}/bin:{os.environ['PATH']}"}

    def run(script):
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", ISOLATE + script],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    run.top = top
    return run


SCRIPT = """
install() { sh install.sh --yes --no-start --prefix "$W/opt" --data-dir "$W/data" "$@"; }
install
grep -q "^ExecStart=$W/opt/current/bin/hostd agent$" /etc/systemd/system/hostd.service
grep -q '^KillMode=process$' /etc/systemd/system/hostd.service
grep -q "^HOSTD_DATA_DIR=$W/data$" /etc/hostd/hostd.env
test "$(stat -c %a /etc/hostd/hostd.env)" = 600
getent group hostd
hostctl --version
hostd --version
echo '# mine' >> /etc/hostd/hostd.env
install --quiet
grep -q '# mine' /etc/hostd/hostd.env
mkdir -p "$W/data/cas" /run/hostd
sh "$W/opt/uninstall.sh" --yes --keep-data
test -d "$W/data/cas"
test ! -e "$W/opt"
sh install.sh --uninstall --yes --prefix "$W/opt" --data-dir "$W/data"
for gone in "$W/opt" "$W/data" /run/hostd /etc/systemd/system/hostd.service /etc/hostd \
    /usr/local/bin/hostctl /usr/local/bin/hostd; do
    test ! -e "$gone" || { echo "still there: $gone"; exit 1; }
done
! getent group hostd
"""


def test_install_twice_and_uninstall_leave_nothing(isolated):
    done = isolated(SCRIPT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "hostctl 0.1.0" in done.stdout
    asked = (isolated.top / "systemctl.log").read_text()
    assert "daemon-reload" in asked
    assert "disable --now --quiet hostd.service" in asked
    assert "restart" not in asked
    assert not (isolated.top / "opt").exists()
