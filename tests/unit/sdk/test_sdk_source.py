"""Which local files go to containers: modules, packages, directories; what is uploaded."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hostd
from hostd import exception
from hostd.sdk import source
from hostd.sdk.client import Client
from hostd.sdk.output import PlainOutput
from hostd.sdk.upload import Contents, file_digest
from tests.fakes.fake_api import FakeAPI


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a script and a package, from which can be imported."""
    folder = tmp_path / "project"
    (folder / "labpkg" / "inner").mkdir(parents=True)
    (folder / "labpkg" / "__pycache__").mkdir()
    (folder / "labpkg" / ".git").mkdir()
    for name, text in {
        "labscript.py": "def work(): return 1\n",
        "labpkg/__init__.py": "def top(): return 0\n",
        "labpkg/jobs.py": "def work(): return 2\n",
        "labpkg/inner/__init__.py": "",
        "labpkg/inner/deep.py": "def work(): return 3\n",
        "labpkg/table.json": "{}",
        "labpkg/old.pyc": "",
        "labpkg/.env": "SECRET=1",
        "labpkg/__pycache__/x.txt": "",
        "labpkg/.git/config": "",
    }.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


PACKAGE = [
    "/root/labpkg/__init__.py",
    "/root/labpkg/inner/__init__.py",
    "/root/labpkg/inner/deep.py",
    "/root/labpkg/jobs.py",
    "/root/labpkg/table.json",
]


def paths_of(module: str) -> list[str]:
    importlib.import_module(module)
    return [entry.remote for entry in source.of_module(module)]


def test_a_script_is_one_file(project: Path) -> None:
    assert paths_of("labscript") == ["/root/labscript.py"]


@pytest.mark.parametrize("module", ["labpkg", "labpkg.jobs", "labpkg.inner", "labpkg.inner.deep"])
def test_a_module_of_a_package_brings_the_whole_package(project: Path, module: str) -> None:
    assert paths_of(module) == PACKAGE


def test_namespace_packages_are_brought_as_well(project: Path) -> None:
    (project / "labpkg" / "__init__.py").unlink()
    assert paths_of("labpkg.jobs") == PACKAGE[1:]


def test_installed_modules_are_left_to_the_image() -> None:
    assert source.of_module("json") == []
    assert source.of_module("pytest") == []


def test_local_modules_can_be_added_by_name(project: Path) -> None:
    image = hostd.Image.debian_slim().add_local_python_source("labscript", "labpkg")
    paths = [entry.remote for step in image.attached for entry in step.entries()]
    assert paths == ["/root/labscript.py", *PACKAGE]
    with pytest.raises(exception.InvalidError, match="module labnone cannot be found"):
        source.named_module("labnone", "/root", None)


def test_the_functions_source_is_its_module_and_the_images_additions(
    api: FakeAPI, project: Path
) -> None:
    script = importlib.import_module("labscript")
    image = hostd.Image.debian_slim().add_local_dir(project / "labpkg" / "inner", "/opt/inner")
    app = hostd.App("source")
    app.function(image=image)(script.work)
    app.function(image=image, include_source=False, name="bare")(script.work)
    with app.run():
        pass
    functions = next(iter(api.apps.values()))["functions"]
    added = ["/opt/inner/__init__.py", "/opt/inner/deep.py"]
    assert [file["path"] for file in functions[0]["source"]] == ["/root/labscript.py", *added]
    assert [file["path"] for file in functions[1]["source"]] == added
    assert (functions[0]["module"], functions[0]["qualname"]) == ("labscript", "work")


# --- directories -------------------------------------------------------------------------------


def test_directories_keep_modes_links_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "empty").mkdir(parents=True)
    (tmp_path / "a" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "a" / "run.sh").chmod(0o755)
    (tmp_path / "a" / "alias").symlink_to("run.sh")
    entries = {entry.remote: entry for entry in source.directory(str(tmp_path / "a"), "/x", ())}
    assert sorted(entries) == ["/x/alias", "/x/empty", "/x/run.sh"]
    assert (entries["/x/run.sh"].mode, entries["/x/empty"].kind) == (0o755, "dir")
    assert (entries["/x/alias"].kind, entries["/x/alias"].mode) == ("file", 0o755)


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_text("")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    paths = [entry.remote for entry in source.directory(str(tmp_path / "a"), "/", ())]
    assert "/b/f" in paths
    assert len(paths) < 5


def test_ignored_files_stay_here(tmp_path: Path) -> None:
    for name in ("a.py", "b.log", "c.txt"):
        (tmp_path / name).write_text("")
    by_pattern = source.directory(str(tmp_path), "/x", ["*.log", "c.*"])
    assert [entry.remote for entry in by_pattern] == ["/x/a.py"]
    by_function = source.directory(str(tmp_path), "/x", lambda path: path.suffix == ".py")
    assert [entry.remote for entry in by_function] == ["/x/b.log", "/x/c.txt"]
    inverted = source.directory(str(tmp_path), "/x", ~hostd.FilePatternMatcher("*.py"))
    assert [entry.remote for entry in inverted] == ["/x/a.py"]


def test_missing_directories_and_too_many_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(exception.InvalidError, match="is not there"):
        source.directory(str(tmp_path / "none"), "/x", ())
    with pytest.raises(exception.InvalidError, match="is not a file"):
        source.one_file(str(tmp_path), "/x")
    for number in range(4):
        (tmp_path / str(number)).write_text("")
    monkeypatch.setattr(source, "FILES_MAX", 3)
    with pytest.raises(exception.InvalidError, match="more than 3 files"):
        source.directory(str(tmp_path), "/x", ())


# --- upload ------------------------------------------------------------------------------------


def test_only_missing_content_is_uploaded(api: FakeAPI, client: Client, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f"content {name}")
    for _ in range(2):
        contents = Contents()
        contents.describe(source.directory(str(tmp_path), "/x", ["api.sock"]))
        contents.upload(client, PlainOutput())
    assert len(api.put_digests) == 3
    (tmp_path / "b").write_text("other")
    contents = Contents()
    contents.describe(source.directory(str(tmp_path), "/x", ["api.sock"]))
    contents.upload(client, PlainOutput())
    assert len(api.put_digests) == 4


def test_a_file_that_changes_while_it_is_uploaded_is_named(
    api: FakeAPI, client: Client, tmp_path: Path
) -> None:
    for text in ("longer than before", "cut"):
        (tmp_path / "f").write_text("original")
        contents = Contents()
        contents.describe([source.one_file(str(tmp_path / "f"), "/f")])
        (tmp_path / "f").write_text(text)
        with pytest.raises(exception.InvalidError, match="f changed while it was uploaded"):
            contents.upload(client, PlainOutput())


def test_digests_are_remembered_only_for_settled_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    first, _ = file_digest(str(path))
    path.write_text("two")  # same size, perhaps the same time stamp
    second, _ = file_digest(str(path))
    assert first != second
    os.utime(path, (1, 1))
    third, size = file_digest(str(path))
    assert (third, size) == (second, 3)
    path.write_text("six")
    os.utime(path, (1, 1))  # nothing tells the difference any more
    assert file_digest(str(path)) == (second, 3)
