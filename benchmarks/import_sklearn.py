"""``import sklearn`` on the served root file system, beside the same files in a plain directory.

Ways, interleaved round by round: a plain directory, hostd's EROFS way, hostd's FUSE way. Each round
mounts a new overlay ("new container") and runs the import in a chroot, then once more ("warm"). With
``--cold`` the page cache is dropped before each run (``cold``).
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import daemon, ratio, report, summary, timed
from hostd.fs import CAS, Fetcher, FileSystem, ImageStore
from hostd.fs.mounting import mount, unmount
from hostd.ids import ImageId
from hostd.sdk.client import Client
from tests.daemon_process import shared_data_dir

STATEMENT = "import sklearn.ensemble"


def build_image() -> ImageId:
    """The image with scikit-learn, built once and cached."""
    steps = [
        {"op": "from", "image": "debian_slim"},
        {"op": "run", "command": "python3 -m pip install scikit-learn"},
    ]
    with daemon():
        events = list(
            Client.from_env().lines("POST", "/api/v1/builds", {"recipe": {"steps": steps}})
        )
    assert events[-1]["kind"] == "done", events[-1]
    return ImageId(events[-1]["image_id"])


def import_in(root: Path) -> float:
    return timed(
        lambda: subprocess.run(
            ["chroot", str(root), "/usr/bin/python3", "-c", STATEMENT], check=True
        )
    )


def drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Plain:
    """A new overlay over the plain directory, as a container on it would have."""

    def __init__(self, lower: Path, scratch: Path) -> None:
        self.lower, self.scratch = lower, scratch

    async def once(self, cold: bool) -> tuple[float, float]:
        merged, upper, work = (self.scratch / name for name in ("merged", "upper", "work"))
        for path in (merged, upper, work):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        options = f"lowerdir={self.lower},upperdir={upper},workdir={work}"
        mount("overlay", merged, "overlay", flags=0, options=options)
        try:
            return measure(merged, cold)
        finally:
            unmount(merged)


class Served:
    """A root file system of hostd."""

    def __init__(self, fs: FileSystem, image: ImageId) -> None:
        self.fs, self.image, self.count = fs, image, 0

    async def once(self, cold: bool) -> tuple[float, float]:
        self.count += 1
        rootfs = await self.fs.mount_rootfs(f"bench-{self.count}", [self.image])
        try:
            return await asyncio.to_thread(measure, rootfs.path, cold)
        finally:
            await self.fs.unmount_rootfs(rootfs)


def measure(root: Path, cold: bool) -> tuple[float, float]:
    if cold:
        drop_caches()
    return import_in(root), import_in(root)


async def compare(
    image: ImageId, rounds: int, cold: bool, folder: Path
) -> dict[str, dict[str, list[float]]]:
    data = shared_data_dir()
    cas = CAS(data / "cas")
    images = ImageStore(cas, data / "images")
    plain = data.parent / f"plain-{image}"
    ways: dict[str, Callable[[bool], object]] = {}
    async with asyncio.TaskGroup() as tasks:
        services = []
        for mode in ("erofs", "fuse"):
            run_dir = folder / mode
            run_dir.mkdir()
            fs = FileSystem(
                cas=cas,
                images=images,
                data_dir=data,
                run_dir=run_dir,
                mode=mode,
                fetcher=Fetcher(cas, [], 5),
            )
            await fs.start()
            services.append((fs, tasks.create_task(fs.run())))
            ways[mode] = Served(fs, image).once
        if not plain.exists():
            rootfs = await services[0][0].mount_rootfs("bench-copy", [image])
            subprocess.run(["cp", "-a", str(rootfs.path), str(plain)], check=True)
            await services[0][0].unmount_rootfs(rootfs)
        ways["plain"] = Plain(plain, folder / "plain").once
        times: dict[str, dict[str, list[float]]] = {way: {"new": [], "warm": []} for way in ways}
        try:
            for number in range(rounds + 1):
                for way, once in ways.items():
                    new, warm = await once(cold)  # type: ignore[misc]
                    if number:
                        times[way]["new"].append(new)
                        times[way]["warm"].append(warm)
        finally:
            for fs, task in services:
                task.cancel()
                await fs.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    image = build_image()
    figures = {}
    for name, cold in (("page_cache", False), ("cold_disk", True))[: 2 if options.cold else 1]:
        with tempfile.TemporaryDirectory(prefix="hostd-b-", dir="/run") as folder:
            times = asyncio.run(compare(image, options.rounds, cold, Path(folder)))
        medians = {way: {k: summary(v) for k, v in t.items()} for way, t in times.items()}
        figures[name] = {
            **medians,
            "erofs_vs_plain_new": ratio(
                medians["erofs"]["new"]["median_ms"], medians["plain"]["new"]["median_ms"]
            ),
            "fuse_vs_plain_new": ratio(
                medians["fuse"]["new"]["median_ms"], medians["plain"]["new"]["median_ms"]
            ),
            "erofs_vs_plain_warm": ratio(
                medians["erofs"]["warm"]["median_ms"], medians["plain"]["warm"]["median_ms"]
            ),
            "fuse_vs_plain_warm": ratio(
                medians["fuse"]["warm"]["median_ms"], medians["plain"]["warm"]["median_ms"]
            ),
        }
    report(
        "import_sklearn",
        {**figures, "bars": {"erofs_vs_plain_new": "<= 1.05", "fuse_vs_plain_new": "<= 1.5"}},
    )


if __name__ == "__main__":
    main()
