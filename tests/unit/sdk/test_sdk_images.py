"""Image: the recipe that every method gives, as the daemon decodes it; local files; refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hostd
from hostd import exception, model
from hostd.sdk.recipe import build_request
from hostd.sdk.upload import Contents
from tests.fakes.fake_api import FakeAPI


def steps_of(image: hostd.Image) -> list[model.Step]:
    """The steps, decoded strictly as the daemon does."""
    request = msgspec.convert(build_request(image, Contents()), model.BuildRequest)
    return request.recipe.steps


def last(image: hostd.Image) -> model.Step:
    return steps_of(image)[-1]


def slim() -> hostd.Image:
    return hostd.Image.debian_slim()


def sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_images_begin_from_a_base() -> None:
    assert steps_of(slim()) == [model.From(image="debian_slim")]
    assert steps_of(hostd.Image.debian_slim("3.12")) == [
        model.From(image="debian_slim", python_version="3.12")
    ]
    assert steps_of(hostd.Image.from_name("mine")) == [model.From(image="mine")]
    assert steps_of(hostd.Image.from_id("im-1")) == [model.From(image="im-1")]
    assert steps_of(hostd.Image.from_registry("python:3.12")) == [model.From(image="python:3.12")]
    assert steps_of(hostd.Image.from_scratch()) == [model.From(image="scratch")]


@pytest.mark.parametrize("version", ["3", "3.11.2", "three", 3.11])
def test_python_versions_are_checked(version: Any) -> None:
    with pytest.raises(exception.InvalidError, match="expected a text such as"):
        hostd.Image.debian_slim(version)


def test_pip_install_sorts_packages_and_passes_options() -> None:
    image = slim().pip_install(
        "numpy", ["attrs", "b==1"], find_links="http://l", index_url="http://i",
        extra_index_url="http://e", pre=True, extra_options="--no-deps --quiet",
    )  # fmt: skip
    assert last(image) == model.Run(
        args=["python3", "-m", "pip", "install", "--find-links", "http://l", "--index-url", "http://i",
              "--extra-index-url", "http://e", "--pre", "--no-deps", "--quiet",
              "attrs", "b==1", "numpy"]
    )  # fmt: skip


def test_order_of_packages_does_not_change_the_recipe() -> None:
    assert steps_of(slim().pip_install("a", "b")) == steps_of(slim().pip_install("b", "a"))


def test_force_build_marks_the_step() -> None:
    assert last(slim().pip_install("a", force_build=True)).force  # type: ignore[union-attr]
    assert last(slim().run_commands("a", force_build=True)).force  # type: ignore[union-attr]
    forced = hostd.Image.debian_slim(force_build=True)
    assert build_request(forced.run_commands("true"), Contents())["force"] is True


def test_apt_install_is_one_layer_that_leaves_no_lists() -> None:
    step = last(slim().apt_install("git", "libfoo++-dev"))
    assert isinstance(step, model.Run)
    assert "install -y --no-install-recommends git libfoo++-dev &&" in str(step.command)
    assert str(step.command).endswith("rm -rf /var/lib/apt/lists/*")


def test_apt_install_quotes_what_a_shell_would_read() -> None:
    step = last(slim().apt_install("git; rm -rf /"))
    assert "'git; rm -rf /'" in str(step.command)  # type: ignore[union-attr]


def test_run_commands_are_a_layer_each() -> None:
    assert steps_of(slim().run_commands("a", ["b", "c"]))[1:] == [
        model.Run(command="a"),
        model.Run(command="b"),
        model.Run(command="c"),
    ]


def test_configuration_steps() -> None:
    image = (
        slim()
        .env({"A": "1"})
        .workdir("/w")
        .entrypoint(["/e"])
        .cmd(["c"])
        .shell(["/bin/bash", "-c"])
    )
    assert steps_of(image)[1:] == [
        model.Env(variables={"A": "1"}),
        model.Workdir(path="/w"),
        model.Entrypoint(args=["/e"]),
        model.Cmd(args=["c"]),
        model.Shell(args=["/bin/bash", "-c"]),
    ]


def test_images_are_immutable() -> None:
    base = slim()
    base.env({"A": "1"})
    assert len(steps_of(base)) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: slim().entrypoint("/bin/sh"),
        lambda: slim().cmd([1]),
        lambda: slim().env({"A": 1}),
        lambda: slim().pip_install(""),
        lambda: slim().run_commands(["ok", 3]),
        lambda: hostd.Image.from_name(""),
        lambda: slim().pip_install("a", gpu="H100"),
        lambda: slim().run_commands("a", secrets=[object()]),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_written(make: Any) -> None:
    with pytest.raises(exception.InvalidError):
        make()


def test_nothing_to_install_is_no_step() -> None:
    assert (
        slim().pip_install().apt_install().run_commands().dockerfile_commands().steps
        == slim().steps
    )


# --- local files -------------------------------------------------------------------------------


def test_requirements_are_copied_and_installed(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("attrs\n")
    steps = steps_of(slim().pip_install_from_requirements(tmp_path / "requirements.txt"))
    copy, run = steps[1:]
    assert isinstance(copy, model.Copy)
    assert copy.files[0].path == "/.hostd/requirements.txt"
    assert copy.files[0].digest == sha256("attrs\n")
    assert run == model.Run(args=["python3", "-m", "pip", "install", "-r", copy.files[0].path])


def test_copied_files_are_steps_and_uploaded_before_the_build(api: FakeAPI, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("data")
    image = slim().add_local_file(tmp_path / "data.txt", "/opt/", copy=True)
    app = hostd.App("files", include_source=False)
    app.function(image=image)(sha256)
    with app.run():
        pass
    (file,) = api.builds[0]["recipe"]["steps"][1]["files"]
    assert (file["path"], api.blobs[file["digest"]]) == ("/opt/data.txt", b"data")


def test_added_files_lie_over_the_image_of_the_function(api: FakeAPI, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "data.txt").chmod(0o755)
    image = slim().add_local_file(tmp_path / "data.txt", "/opt/renamed.txt")
    app = hostd.App("files", include_source=False)
    app.function(image=image)(sha256)
    with app.run():
        pass
    assert api.builds[0]["recipe"]["steps"] == [{"op": "from", "image": "debian_slim"}]
    (file,) = next(iter(api.apps.values()))["functions"][0]["source"]
    assert (file["path"], file["mode"], file["size_bytes"]) == ("/opt/renamed.txt", 0o755, 4)


def test_a_build_step_after_added_files_is_refused(tmp_path: Path) -> None:
    image = slim().add_local_dir(tmp_path, "/data")
    with pytest.raises(
        exception.InvalidError, match="a build step comes after directory"
    ) as caught:
        image.pip_install("a")
    assert "copy=True" in str(caught.value.hint)
    with pytest.raises(exception.InvalidError):
        image.add_local_file(tmp_path / "f", "/f", copy=True)
    assert len(image.add_local_file(tmp_path / "f", "/f").attached) == 2


@pytest.mark.parametrize("remote", ["data", "./data", "/a/../b", ""])
def test_remote_paths_are_absolute(remote: str) -> None:
    with pytest.raises(exception.InvalidError, match="remote path"):
        slim().add_local_dir(".", remote)
    with pytest.raises(exception.InvalidError, match="remote path"):
        slim().add_local_file("f", remote)


def test_local_files_are_looked_for_only_when_the_app_runs(api: FakeAPI, tmp_path: Path) -> None:
    image = slim().add_local_file(tmp_path / "none", "/f").add_local_python_source("no_such_module")
    app = hostd.App("files", include_source=False)
    app.function(image=image)(sha256)
    with pytest.raises(exception.InvalidError, match=r"none: No such file"):
        app.run().__enter__()


def test_relative_paths_are_those_of_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_text("f")
    monkeypatch.chdir(tmp_path)
    image = slim().add_local_file("f", "/f", copy=True)
    monkeypatch.chdir("/")
    assert last(image).files[0].digest == sha256("f")  # type: ignore[union-attr]


# --- Dockerfiles -------------------------------------------------------------------------------


def test_a_dockerfile_brings_its_context(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:bookworm-slim\nCOPY . /app\n")
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "a.txt").write_text("a")
    (tmp_path / "keep" / "link").symlink_to("a.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.log").write_text("b")
    (tmp_path / ".dockerignore").write_text("# comment\n*.log\n")
    image = hostd.Image.from_dockerfile(
        tmp_path / "Dockerfile", context_dir=tmp_path, build_args={"A": "1"}
    )
    (step,) = steps_of(image)
    assert isinstance(step, model.Dockerfile)
    assert step.build_args == {"A": "1"}
    found = {(file.path, file.kind, file.target) for file in step.context}
    assert found == {
        (".dockerignore", "file", None),
        ("Dockerfile", "file", None),
        ("empty", "dir", None),
        ("keep/a.txt", "file", None),
        ("keep/link", "symlink", "a.txt"),
    }


def test_a_dockerfile_that_copies_nothing_brings_nothing(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:bookworm-slim\nRUN true\n")
    image = hostd.Image.from_dockerfile(tmp_path / "Dockerfile", context_dir="/")
    assert steps_of(image)[0].context == []  # type: ignore[union-attr]


def test_ignore_patterns_replace_the_file(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nADD . /\n")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".dockerignore").write_text("*.txt\n")
    image = hostd.Image.from_dockerfile(
        tmp_path / "Dockerfile", context_dir=tmp_path, ignore=["Dockerfile", ".*"]
    )
    assert [file.path for file in steps_of(image)[0].context] == ["a.txt"]  # type: ignore[union-attr]


def test_the_dockerfiles_own_ignore_file_goes_first(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / "Dockerfile.dockerignore").write_text("*\n!a.txt\n")
    (tmp_path / ".dockerignore").write_text("a.txt\n")
    (tmp_path / "a.txt").write_text("a")
    image = hostd.Image.from_dockerfile(tmp_path / "Dockerfile", context_dir=tmp_path)
    assert [file.path for file in steps_of(image)[0].context] == ["a.txt"]  # type: ignore[union-attr]


def test_dockerfile_commands_are_a_later_step(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    image = slim().dockerfile_commands("RUN true", ["COPY a /a"], context_dir=tmp_path)
    step = last(image)
    assert isinstance(step, model.Dockerfile)
    assert step.text == "RUN true\nCOPY a /a\n"
    assert [file.path for file in step.context] == ["a"]


def test_a_missing_dockerfile_is_named(tmp_path: Path) -> None:
    image = hostd.Image.from_dockerfile(tmp_path / "Dockerfile")
    with pytest.raises(exception.InvalidError, match=r"Dockerfile .*/Dockerfile"):
        build_request(image, Contents())


# --- builds ------------------------------------------------------------------------------------


def test_a_failed_build_shows_the_end_of_its_output(api: FakeAPI) -> None:
    api.build_events = [
        {"kind": "step", "text": "RUN false"},
        *({"kind": "line", "text": f"line {number}"} for number in range(40)),
        {"kind": "failed", "problem": {"code": "image_build_failed", "detail": "step 2: exit 1",
                                       "step": 2, "exit_code": 1}},
    ]  # fmt: skip
    app = hostd.App("builds", include_source=False)
    app.function()(sha256)
    with pytest.raises(exception.ImageBuildError, match="step 2: exit 1") as caught:
        app.run().__enter__()
    assert str(caught.value).endswith("line 39")
    assert "line 19\n" not in str(caught.value)
    assert caught.value.fields["exit_code"] == 1


def test_enable_output_shows_builds(api: FakeAPI, capsys: pytest.CaptureFixture[str]) -> None:
    api.build_events = [
        {"kind": "step", "text": "RUN true"},
        {"kind": "line", "text": "hello"},
        {"kind": "cached", "text": "ENV A=1"},
        {"kind": "done", "image_id": "im-1"},
    ]
    app = hostd.App("builds", include_source=False)
    app.function()(sha256)
    with app.run():
        pass
    assert capsys.readouterr().err == ""
    with hostd.enable_output(), app.run():
        pass
    shown = capsys.readouterr().err
    assert "=> RUN true\n   hello\n=> (cached) ENV A=1\n" in shown


# --- imports() ---------------------------------------------------------------------------------


def test_imports_are_forgiven_here() -> None:
    with slim().imports():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401 - on purpose


def test_other_errors_in_the_guard_are_not() -> None:
    with pytest.raises(ZeroDivisionError), slim().imports():
        1 / 0  # noqa: B018 - for its error


def test_failed_imports_are_raised_in_containers_of_that_image_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOSTD_IS_REMOTE", "1")
    with_it, without = slim().env({"A": "1"}), slim()
    app = hostd.App("imports")
    with with_it.imports():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401 - on purpose
    uses = app.function(image=with_it, name="uses")(sha256)
    other = app.function(image=without, name="other")(sha256)
    assert other._hostd_raw is sha256
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = uses._hostd_raw
