"""The launcher's pure parts: phases, endings, the container's specification, the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostd.errors import (
    ContainerExitedError,
    ContainerStartError,
    Error,
    OutOfMemoryError,
    TimeoutError,
)
from hostd.ids import AppId, ContainerId, FunctionId, ImageId
from hostd.model import FunctionDefinition, FunctionSpec, ImageConfig
from hostd.runtime.ending import Stage, Tail, exit_error, with_tail
from hostd.runtime.function_spec import allow_source, container_spec, memory_limit_bytes
from hostd.runtime.interpreter import find_python
from hostd.runtime.phases import PhaseTimer
from hostd.runtime.spec import ContainerExit, ContainerSpec


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_us = 1_000

    def wall_us(self) -> int:
        return self.now_us

    def monotonic_us(self) -> int:
        return self.now_us


def test_phases_lie_end_to_end() -> None:
    clock = HandClock()
    timer = PhaseTimer(clock)
    clock.now_us = 1_100
    timer.end("place")
    clock.now_us = 1_500
    timer.end_parts({"image_index": 100, "mount": 50, "overlay": 20})
    assert timer.phases_us == {"place": 100, "image_index": 100, "mount": 50, "overlay": 250}


@pytest.mark.parametrize(("claimed", "boot"), [(1_050, 50), (0, 0), (10**18, 100)])
def test_claimed_times_are_moved_between_the_last_phase_and_now(claimed: int, boot: int) -> None:
    clock = HandClock()
    timer = PhaseTimer(clock)
    clock.now_us = 1_100
    timer.end("boot", claimed)
    timer.end("connect")
    assert timer.phases_us == {"boot": boot, "connect": 100 - boot}


def ended(exited: ContainerExit, stage: Stage = Stage.READY, tail: Tail | None = None) -> Error:
    return exit_error(
        exited, who="container ct-1", stage=stage, tail=tail or Tail(), limit_bytes=64 << 20
    )


@pytest.mark.parametrize(
    ("exited", "fields"),
    [
        (ContainerExit(exit_code=3, signal=None), {"exit_code": 3}),
        (ContainerExit(exit_code=139, signal=None), {"signal": 11}),
        (ContainerExit(exit_code=None, signal=9), {"signal": 9}),
        (ContainerExit(exit_code=255, signal=None), {"exit_code": 255}),
    ],
)
def test_exit_is_told_with_its_code_or_signal(
    exited: ContainerExit, fields: dict[str, int]
) -> None:
    error = ended(exited)
    assert isinstance(error, ContainerExitedError)
    assert error.fields == fields


def test_out_of_memory_goes_before_the_exit_code() -> None:
    error = ended(ContainerExit(exit_code=137, signal=None, oom=True, peak_bytes=64 << 20))
    assert isinstance(error, OutOfMemoryError)
    assert "its limit of 64 MiB (peak 64 MiB)" in str(error)


@pytest.mark.parametrize(
    ("stage", "cls"),
    [(Stage.BOOTING, ContainerStartError), (Stage.LOADING, ContainerExitedError)],
)
def test_exit_in_a_start_ends_with_the_last_lines(stage: Stage, cls: type[Error]) -> None:
    tail = Tail()
    for number in range(50):
        tail.add(f"line {number}".encode())
    tail.add(b"x" * 10_000 + b"\xff")
    error = ended(ContainerExit(exit_code=1, signal=None), stage, tail)
    assert type(error) is cls
    lines = str(error).splitlines()
    assert len([line for line in lines if line.startswith("  ")]) == 20
    assert max(map(len, lines)) < 600


def test_tail_is_added_without_losing_hint_and_fields() -> None:
    tail = Tail()
    tail.add(b"last")
    error = with_tail(TimeoutError("late", hint="wait", limit_s=3), tail)
    assert (str(error), error.hint, error.fields) == (
        "late\n\nits last lines of output:\n  last", "wait", {"limit_s": 3}
    )  # fmt: skip


def function(**options: object) -> FunctionDefinition:
    spec = FunctionSpec(name="f", image_id="im-base", **options)  # type: ignore[arg-type]
    layers = (ImageId("im-source"), ImageId("im-base"))
    return FunctionDefinition(id=FunctionId("fu-1"), app_id=AppId("ap-1"), spec=spec, layers=layers)


def spec_of(image: ImageConfig, **options: object) -> ContainerSpec:
    return container_spec(
        ContainerId("ct-1"),
        function(**options),
        image,
        root=Path("/r"),
        python="/usr/bin/python3",
        lib=Path("/lib"),
        io=Path("/io"),
        memory_limit_bytes=None,
    )


def test_environment_of_the_function_goes_over_that_of_the_image() -> None:
    image = ImageConfig(env={"A": "image", "B": "image", "HOSTD_IS_REMOTE": "0"})
    env = spec_of(image, env={"B": "function"}).env
    assert env == {
        "A": "image",
        "B": "function",
        "HOSTD_IS_REMOTE": "1",
        "HOSTD_CONTAINER_ID": "ct-1",
        "HOSTD_IMAGE_ID": "im-base",
        "HOSTD_APP_ID": "ap-1",
        "HOSTD_FUNCTION": "f",
    }


@pytest.mark.parametrize(("workdir", "cwd"), [("/", "/root"), ("", "/root"), ("/srv", "/srv")])
def test_working_directory_is_the_images_unless_it_has_none(workdir: str, cwd: str) -> None:
    assert spec_of(ImageConfig(workdir=workdir)).cwd == cwd


def test_what_the_container_gets_is_read_only() -> None:
    spec = spec_of(ImageConfig(), block_network=True, pids_max=99)
    assert [(m.target, m.read_only) for m in spec.mounts] == [
        ("/run/hostd/lib", True),
        ("/run/hostd/io", True),
    ]
    assert (spec.network, spec.pids_max) == ("none", 99)


@pytest.mark.parametrize(
    ("options", "default", "limit_mib"),
    [
        ({}, 0, None),
        ({}, 256, 256),
        ({"memory_mib": 100}, 256, 100),
        ({"memory_mib": 100, "memory_limit_mib": 200}, 256, 200),
    ],
)
def test_memory_limit_is_the_limit_then_the_request_then_the_default(
    options: dict[str, int], default: int, limit_mib: int | None
) -> None:
    expected = None if limit_mib is None else limit_mib << 20
    assert memory_limit_bytes(function(**options), default) == expected


def program(root: Path, path: str, mode: int = 0o755) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("")
    target.chmod(mode)


def test_first_python3_on_the_path_is_taken(tmp_path: Path) -> None:
    program(tmp_path, "opt/bin/python3", 0o644)
    program(tmp_path, "usr/local/bin/python3")
    program(tmp_path, "usr/bin/python3")
    assert find_python(tmp_path, {"PATH": "/opt/bin:/usr/local/bin:/usr/bin"}) == "/usr/local/bin/python3"  # fmt: skip
    assert find_python(tmp_path, {}) == "/usr/local/bin/python3"


def test_python_alone_is_taken_where_there_is_no_python3(tmp_path: Path) -> None:
    program(tmp_path, "opt/conda/bin/python")
    assert find_python(tmp_path, {"PATH": "/bin:/opt/conda/bin"}) == "/opt/conda/bin/python"


def test_links_of_an_image_stay_inside_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    program(outside, "python3")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").symlink_to(outside / "python3")
    with pytest.raises(ContainerStartError, match="no python3 on its PATH"):
        find_python(root, {})
    program(root, "opt/real")
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").symlink_to("/opt/real")
    assert find_python(root, {}) == "/usr/bin/python3"


def test_source_is_opened_for_users_who_are_not_root_only(tmp_path: Path) -> None:
    home = tmp_path / "root"
    home.mkdir(mode=0o700)
    for user in ("", "0", "root", "root:adm"):
        allow_source(tmp_path, user)
    assert home.stat().st_mode & 0o777 == 0o700
    allow_source(tmp_path, "1000:1000")
    assert home.stat().st_mode & 0o777 == 0o755


def test_home_that_is_a_link_out_of_the_image_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "image", tmp_path / "outside"
    root.mkdir()
    outside.mkdir(mode=0o700)
    (root / "root").symlink_to(outside)
    allow_source(root, "user")
    assert (root / str(outside)[1:]).stat().st_mode & 0o777 == 0o755
    assert outside.stat().st_mode & 0o777 == 0o700
