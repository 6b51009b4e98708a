"""A root file system for tests, made from this machine's own programs: a shell, some tools, Python.

Each program comes with the libraries that ``ldd`` names. Python is the one that runs the tests, at
/usr/local, with its standard library.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TOOLS = (
    "sh",
    "cat",
    "echo",
    "true",
    "sleep",
    "id",
    "head",
    "ls",
    "stty",
    "mkdir",
    "kill",
    "env",
    "touch",
)
DIRECTORIES = ("bin", "etc", "root", "home/ana", "tmp", "proc", "sys", "dev", "usr/local/bin")
LEFT_OUT = shutil.ignore_patterns(
    *"test tests idlelib tkinter lib2to3 ensurepip site-packages dist-packages".split(),
    *"__pycache__ config-* turtledemo *.a".split(),
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nana:x:1001:1002::/home/ana:/bin/sh\n"
GROUP = "root:x:0:\nana:x:1002:\nwheel:x:10:ana\n"


def build(root: Path) -> Path:
    """Fill a directory with a root file system; 1-2 s, some 60 MB with Python."""
    for directory in (
        "bin",
        "etc",
        "root",
        "home/ana",
        "tmp",
        "proc",
        "sys",
        "dev",
        "usr/local/bin",
    ):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        path = shutil.which(name, path="/bin:/usr/bin")
        if path is not None:
            _put(Path(path), root / "bin" / name, root)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    _put_python(root)
    return root


def _put_python(root: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    executable = Path(sys.base_prefix, "bin", f"python{version}")
    _put(executable, root / "usr/local/bin" / f"python{version}", root)
    for alias in ("python3", "python"):
        (root / "usr/local/bin" / alias).symlink_to(f"python{version}")
    library = root / "usr/local/lib" / f"python{version}"
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=LEFT_OUT, symlinks=True)
    for module in (library / "lib-dynload").glob("*.so"):
        _put_libraries(module, root)


def _put(source: Path, target: Path, root: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), target)
    _put_libraries(source, root)


def _put_libraries(program: Path, root: Path) -> None:
    listed = subprocess.run(
        ["ldd", program], capture_output=True, text=True, timeout=30, check=False
    )
    for word in listed.stdout.split():
        if word.startswith("/") and not (target := root / word[1:]).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(word).resolve(), target)
