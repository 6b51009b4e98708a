"""Local files that an image or a container will have: recorded here, read only when an app runs.

Cheap to import, because images are defined in containers again. The reading is in
``hostd/sdk/source.py``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    from hostd.sdk.image import Ignore
    from hostd.sdk.source import Entry
    from hostd.sdk.upload import Contents


class LocalCopy:
    """A file, a directory or a Python module that goes to a place in containers."""

    __slots__ = ("_ignore", "_kind", "_local", "_remote")

    def __init__(self, kind: str, local: str, remote: str, ignore: Ignore | None) -> None:
        self._kind = kind
        self._local = local
        self._remote = remote
        self._ignore = ignore

    @classmethod
    def of_file(cls, local: str, remote: str) -> LocalCopy:
        """One file to exactly this path."""
        return cls("file", local, remote, None)

    @classmethod
    def of_directory(cls, local: str, remote: str, ignore: Ignore) -> LocalCopy:
        """The content of a directory below this path."""
        return cls("directory", local, remote, ignore)

    @classmethod
    def of_module(cls, module: str, remote: str, ignore: Ignore | None) -> LocalCopy:
        """A module or package, by its import name, below this path."""
        return cls("module", module, remote, ignore)

    def describe(self) -> str:
        """What a message calls it."""
        return f"{self._kind} {self._local}"

    def entries(self) -> list[Entry]:
        """Its files, as they are now.

        Raises:
            InvalidError: there is no such file, directory or module.
        """
        from hostd.sdk import source

        if self._kind == "file":
            return [source.one_file(self._local, self._remote)]
        if self._kind == "directory":
            return source.directory(self._local, self._remote, self._ignore)
        return source.named_module(self._local, self._remote, self._ignore)

    def resolve(self, contents: Contents) -> dict[str, object]:
        """The build step; the files' content is noted for upload."""
        return {"op": "copy", "files": contents.describe(self.entries())}


class LocalDockerfile:
    """A Dockerfile, or some instructions of one, and the directory that COPY takes from."""

    __slots__ = ("_build_args", "_context_dir", "_ignore", "_path", "_text")

    def __init__(
        self,
        *,
        path: str | None = None,
        text: str = "",
        context_dir: str,
        build_args: dict[str, str],
        ignore: Ignore | None,
    ) -> None:
        self._path = path
        self._text = text
        self._context_dir = context_dir
        self._build_args = build_args
        self._ignore = ignore

    def describe(self) -> str:
        """What a message calls it."""
        return f"Dockerfile {self._path}" if self._path else "dockerfile commands"

    def entries(self) -> list[Entry]:
        """The files of its context; none when nothing is copied from it."""
        from hostd.sdk import source

        if not source.copies_from_context(self._content()):
            return []
        return source.build_context(self._context_dir, self._path, self._ignore)

    def resolve(self, contents: Contents) -> dict[str, object]:
        """The build step; the context's content is noted for upload."""
        step: dict[str, object] = {"op": "dockerfile", "text": self._content()}
        step["context"] = contents.describe(self.entries())
        step["build_args"] = self._build_args
        return step

    def _content(self) -> str:
        from hostd.sdk import source

        return self._text if self._path is None else source.read_text(self._path)


if TYPE_CHECKING:
    LocalStep = Union[LocalCopy, LocalDockerfile]
