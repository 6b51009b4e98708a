"""Image: the recipe of a container's file system, one immutable step after another.

A recipe only records: it is resolved (files hashed, Dockerfiles read) when an app runs, by
``hostd/sdk/recipe.py``. In containers, where the imported module defines its images again, nothing
is ever resolved, so no method here touches a local file.
"""

from __future__ import annotations

import os

from hostd.errors import InvalidError
from hostd.sdk.context import is_local
from hostd.sdk.options import check_env, refuse_unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path, PurePath
    from types import TracebackType
    from typing import Any, Union

    from hostd.sdk.local_files import LocalStep

    LocalPath = Union[str, Path]
    Ignore = Union[Sequence[str], Callable[[Path], bool]]
    StepRecord = Union[dict[str, object], LocalStep]

PYTHON = "python3"
"""Every image with Python has this name; ``python`` alone is missing on Debian."""
SOURCE_ROOT = "/root"
"""Where the user's modules lie in containers."""
_PLAIN = dict.fromkeys(map(ord, "+-.:=_/"), "a")
REQUIREMENTS_PATH = "/.hostd/requirements.txt"
_LATER = frozenset(
    [
        "uv_pip_install",
        "uv_sync",
        "pip_install_private_repos",
        "poetry_install_from_file",
        "pip_install_from_pyproject",
        "micromamba_install",
        "run_function",
        "publish",
        "build",
        "from_gcp",
    ]
)


class Image:
    """The steps of an image; every method returns a new Image with one more."""

    __slots__ = ("attached", "force_all", "import_error", "steps")

    def __init__(
        self,
        steps: tuple[StepRecord, ...],
        attached: tuple[LocalStep, ...] = (),
        *,
        force_all: bool = False,
    ) -> None:
        self.steps = steps
        self.attached = attached
        """What ``add_local_*`` lays over the image when a container starts."""
        self.force_all = force_all
        self.import_error: Exception | None = None
        """What ``imports()`` caught."""

    # --- where images begin -------------------------------------------------------------------

    @staticmethod
    def debian_slim(python_version: str | None = None, *, force_build: bool = False) -> Image:
        """Debian stable with Python and pip; its own version of Python unless one is named."""
        step: dict[str, object] = {"op": "from", "image": "debian_slim"}
        if python_version is not None:
            step["python_version"] = _python_version(python_version)
        return Image((step,), force_all=force_build)

    @staticmethod
    def from_registry(tag: str, *, secret: object = None, add_python: str | None = None) -> Image:
        """An image that the hosts know under this reference."""
        refuse_unsupported("Image.from_registry", {"secret": secret, "add_python": add_python})
        return _from(tag)

    @staticmethod
    def from_name(name: str) -> Image:
        """A finished image, by its name; it is never built."""
        return _from(name)

    @staticmethod
    def from_id(image_id: str) -> Image:
        """A finished image, by its id."""
        return _from(image_id)

    @staticmethod
    def from_scratch() -> Image:
        """An empty image."""
        return _from("scratch")

    @staticmethod
    def from_dockerfile(
        path: LocalPath = "Dockerfile",
        *,
        context_dir: LocalPath | None = None,
        build_args: Mapping[str, str] | None = None,
        ignore: Ignore | None = None,
        force_build: bool = False,
    ) -> Image:
        """What a Dockerfile describes; COPY takes from ``context_dir`` (default: the current one).

        ``.dockerignore`` holds unless ``ignore`` is given.
        """
        from hostd.sdk.local_files import LocalDockerfile

        step = LocalDockerfile(
            path=_local(path),
            context_dir=_local(context_dir or "."),
            build_args=check_env("build_args", dict(build_args or {})),
            ignore=ignore,
        )
        return Image((step,), force_all=force_build)

    # --- steps that run commands --------------------------------------------------------------

    def apt_install(self, *packages: str | Sequence[str], force_build: bool = False) -> Image:
        """Install Debian packages."""
        names = " ".join(_quoted(_flat("apt_install", packages)))
        if not names:
            return self
        command = (
            "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y "
            f"--no-install-recommends {names} && rm -rf /var/lib/apt/lists/*"
        )
        return self._then(_run(command, force=force_build))

    def pip_install(  # noqa: PLR0913 - Modal's keywords
        self,
        *packages: str | Sequence[str],
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[object] = (),
        gpu: object = None,
    ) -> Image:
        """Install Python packages with pip, as one layer."""
        refuse_unsupported("pip_install", {"env": env, "secrets": secrets, "gpu": gpu})
        names = sorted(_flat("pip_install", packages))
        if not names:
            return self
        options = _pip_options(find_links, index_url, extra_index_url, pre=pre, extra=extra_options)
        return self._then(_run([*_pip(), *options, *names], force=force_build))

    def pip_install_from_requirements(  # noqa: PLR0913 - Modal's keywords
        self,
        requirements_txt: LocalPath,
        *,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[object] = (),
        gpu: object = None,
    ) -> Image:
        """Install what a requirements file lists; its content is a part of the layer's key."""
        from hostd.sdk.local_files import LocalCopy

        refuse_unsupported(
            "pip_install_from_requirements", {"env": env, "secrets": secrets, "gpu": gpu}
        )
        options = _pip_options(find_links, index_url, extra_index_url, pre=pre, extra=extra_options)
        command = [*_pip(), *options, "-r", REQUIREMENTS_PATH]
        return self._then(
            LocalCopy.of_file(_local(requirements_txt), REQUIREMENTS_PATH),
            _run(command, force=force_build),
        )

    def run_commands(
        self,
        *commands: str | Sequence[str],
        force_build: bool = False,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[object] = (),
        volumes: Mapping[str, object] | None = None,
        gpu: object = None,
    ) -> Image:
        """Run shell commands, one layer each."""
        refuse_unsupported(
            "run_commands", {"env": env, "secrets": secrets, "volumes": volumes, "gpu": gpu}
        )
        lines = _flat("run_commands", commands)
        return self._then(*(_run(line, force=force_build) for line in lines))

    def dockerfile_commands(
        self,
        *commands: str | Sequence[str],
        context_dir: LocalPath | None = None,
        ignore: Ignore | None = None,
        build_args: Mapping[str, str] | None = None,
        force_build: bool = False,
    ) -> Image:
        """Further steps in the words of a Dockerfile."""
        from hostd.sdk.local_files import LocalDockerfile

        lines = _flat("dockerfile_commands", commands)
        if not lines:
            return self
        step = LocalDockerfile(
            text="\n".join(lines) + "\n",
            context_dir=_local(context_dir or "."),
            build_args=check_env("build_args", dict(build_args or {})),
            ignore=ignore,
        )
        # A Dockerfile step cannot be forced itself; a forced step before it has the same effect.
        forced = (_run(["true"], force=True),) if force_build else ()
        return self._then(*forced, step)

    # --- steps that change the configuration --------------------------------------------------

    def env(self, variables: Mapping[str, str]) -> Image:
        """Set environment variables."""
        return self._then({"op": "env", "variables": check_env("Image.env", dict(variables))})

    def workdir(self, path: str | PurePath) -> Image:
        """Change the working directory."""
        return self._then({"op": "workdir", "path": str(path)})

    def entrypoint(self, entrypoint_commands: Sequence[str]) -> Image:
        """Set the entrypoint."""
        return self._then({"op": "entrypoint", "args": _list("entrypoint", entrypoint_commands)})

    def cmd(self, cmd: Sequence[str]) -> Image:
        """Set the default command."""
        return self._then({"op": "cmd", "args": _list("cmd", cmd)})

    def shell(self, shell_commands: Sequence[str]) -> Image:
        """Set the shell of later ``run_commands``."""
        return self._then({"op": "shell", "args": _list("shell", shell_commands)})

    # --- local files --------------------------------------------------------------------------

    def add_local_file(
        self, local_path: LocalPath, remote_path: str | PurePath, *, copy: bool = False
    ) -> Image:
        """Add a file: to the image with ``copy``, else to every container when it starts."""
        from hostd.sdk.local_files import LocalCopy

        remote = _remote("add_local_file", remote_path)
        if remote.endswith("/"):
            remote += os.path.basename(_local(local_path))
        return self._add(LocalCopy.of_file(_local(local_path), remote), copy=copy)

    def add_local_dir(
        self,
        local_path: LocalPath,
        remote_path: str | PurePath,
        *,
        copy: bool = False,
        ignore: Ignore = (),
    ) -> Image:
        """Add a directory's content; ``ignore`` takes dockerignore patterns or a predicate."""
        from hostd.sdk.local_files import LocalCopy

        remote = _remote("add_local_dir", remote_path).rstrip("/") or "/"
        return self._add(LocalCopy.of_directory(_local(local_path), remote, ignore), copy=copy)

    def add_local_python_source(
        self, *modules: str, copy: bool = False, ignore: Ignore | None = None
    ) -> Image:
        """Add Python modules or packages that can be imported here, by name."""
        from hostd.sdk.local_files import LocalCopy

        image = self
        for module in _flat("add_local_python_source", modules):
            image = image._add(LocalCopy.of_module(module, SOURCE_ROOT, ignore), copy=copy)
        return image

    # --- in the user's module -----------------------------------------------------------------

    def imports(self) -> Imports:
        """Guard imports that only work in this image: ``with image.imports(): import torch``.

        Here an ImportError is swallowed; in a container it is raised for functions of this image.
        """
        return Imports(self)

    # --- inside -------------------------------------------------------------------------------

    def _then(self, *steps: StepRecord) -> Image:
        if self.attached:
            last = self.attached[-1].describe()
            raise InvalidError(
                f"a build step comes after {last}, which is added only when a container starts",
                hint="put add_local_* last, or write copy=True to make it a part of the image",
            )
        return Image(self.steps + steps, force_all=self.force_all)

    def _add(self, files: LocalStep, *, copy: bool) -> Image:
        if copy:
            return self._then(files)
        return Image(self.steps, (*self.attached, files), force_all=self.force_all)

    def __getattr__(self, name: str) -> Any:
        if name in _LATER:
            raise AttributeError(f"Image.{name} is not supported yet")
        raise AttributeError(f"Image has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        # In a pickle an image is only a mark; its local files stay on the client.
        return Image, (tuple(step for step in self.steps if isinstance(step, dict)),)

    def __repr__(self) -> str:
        return f"<hostd.Image of {len(self.steps)} steps>"


class Imports:
    """See ``Image.imports``."""

    __slots__ = ("_image",)

    def __init__(self, image: Image) -> None:
        self._image = image

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, ImportError):
            return False
        if not is_local():
            self._image.import_error = error
        return True


def _from(reference: str) -> Image:
    if not isinstance(reference, str) or not reference or len(reference) > 512:
        raise InvalidError(f"image reference is {reference!r}, expected a name, a tag or an id")
    return Image(({"op": "from", "image": reference},))


def _python_version(given: str) -> str:
    parts = given.split(".") if isinstance(given, str) else []
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InvalidError(f'python_version is {given!r}, expected a text such as "3.11"')
    return given


def _flat(what: str, given: Sequence[Any]) -> list[str]:
    """Texts and lists of texts as one list."""
    flat: list[str] = []
    for item in given:
        flat.extend([item] if isinstance(item, str) else item)
    for text in flat:
        if not isinstance(text, str) or not text.strip():
            raise InvalidError(f"{what} was given {text!r}, expected texts")
    return flat


def _list(what: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise InvalidError(f'{what} is {given!r}, expected a list of texts such as ["/bin/sh"]')
    return list(given)


def _quoted(words: list[str]) -> list[str]:
    if all(word.isascii() and word.translate(_PLAIN).isalnum() for word in words):
        return words  # Every usual name; shlex costs a millisecond in every container.
    import shlex

    return [shlex.quote(word) for word in words]


def _run(command: str | list[str], *, force: bool) -> dict[str, object]:
    step: dict[str, object] = {"op": "run"}
    step["command" if isinstance(command, str) else "args"] = command
    if force:
        step["force"] = True
    return step


def _pip() -> list[str]:
    return [PYTHON, "-m", "pip", "install"]


def _pip_options(
    find_links: str | None,
    index_url: str | None,
    extra_index_url: str | None,
    *,
    pre: bool,
    extra: str,
) -> list[str]:
    options = []
    for flag, value in (
        ("--find-links", find_links),
        ("--index-url", index_url),
        ("--extra-index-url", extra_index_url),
    ):
        if value is not None:
            options += [flag, value]
    if pre:
        options.append("--pre")
    if extra:
        import shlex

        options += shlex.split(extra)
    return options


def _local(path: LocalPath) -> str:
    # Relative to the directory in which the image is defined, whatever is current when it is built.
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def _remote(what: str, path: str | PurePath) -> str:
    text = os.fspath(path)
    if not text.startswith("/") or "\0" in text:
        raise InvalidError(f"{what}: remote path {text!r} is not absolute")
    if ".." in text.split("/"):
        raise InvalidError(f"{what}: remote path {text!r} contains ..")
    return text
