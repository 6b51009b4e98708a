"""App: a named group of functions that run together."""

from __future__ import annotations

import sys

from hostd.errors import InvalidError
from hostd.sdk.context import is_interactive, is_local
from hostd.sdk.entry_module import container_name
from hostd.sdk.function import Function
from hostd.sdk.options import (
    NAME_LENGTH_MAX,
    check_env,
    check_name,
    refuse_unsupported,
    resource_fields,
    scaling_fields,
    time_fields,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Coroutine,
        Generator,
        Iterator,
        Mapping,
        Sequence,
    )
    from typing import Any, Protocol, TypeVar, overload

    from typing_extensions import ParamSpec

    from hostd.sdk.client import Client
    from hostd.sdk.entrypoint import LocalEntrypoint
    from hostd.sdk.image import Image
    from hostd.sdk.options import Request
    from hostd.sdk.output import Observer
    from hostd.sdk.retries import Retries
    from hostd.sdk.session import AppRun, Session

    P = ParamSpec("P")
    R = TypeVar("R")
    Y = TypeVar("Y")

    class FunctionDecorator(Protocol):
        """What ``@app.function()`` returns: the kind of function decides what ``remote`` gives."""

        @overload
        def __call__(
            self, raw: Callable[P, Coroutine[Any, Any, R]], /
        ) -> Function[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(
            self, raw: Callable[P, AsyncGenerator[Y, Any]], /
        ) -> Function[P, Generator[Y, None, None], AsyncGenerator[Y, Any]]: ...
        @overload
        def __call__(
            self, raw: Callable[P, AsyncIterator[Y]], /
        ) -> Function[P, Iterator[Y], AsyncIterator[Y]]: ...
        @overload
        def __call__(self, raw: Callable[P, R], /) -> Function[P, R, R]: ...


class App:
    """A group of functions, with an image that those without their own get.

    Its ``function`` decorators register functions; ``with app.run():`` or ``hostctl run`` makes
    them callable. A name is optional for an app that lives only while it runs.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        image: Image | None = None,
        secrets: Sequence[object] = (),
        volumes: Mapping[str, object] | None = None,
        include_source: bool = True,
    ) -> None:
        refuse_unsupported("App", {"tags": tags, "secrets": secrets, "volumes": volumes})
        self.name = None if name is None else check_name("app name", name)
        self.image = image
        self.includes_source = include_source
        self.registered_functions: dict[str, Function[Any, Any, Any]] = {}
        self.registered_entrypoints: dict[str, LocalEntrypoint[Any, Any]] = {}
        self.session: Session | None = None
        """Set while the app runs."""

    @property
    def app_id(self) -> str | None:
        """The id of the running app; None when it does not run."""
        return self.session.app_id if self.session is not None else None

    @property
    def description(self) -> str:
        """Its name, or the name of the script that it comes from."""
        return self.name or _as_name(container_name("__main__") or "app")

    def function(  # noqa: PLR0913 - Modal's keywords
        self,
        _missing_parentheses: object = None,
        *,
        image: Image | None = None,
        schedule: object = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[object] = (),
        gpu: object = None,
        serialized: bool = False,
        network_file_systems: Mapping[str, object] | None = None,
        volumes: Mapping[str, object] | None = None,
        cpu: Request = None,
        memory: Request = None,
        ephemeral_disk: int | None = None,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: int | None = None,
        proxy: object = None,
        retries: int | Retries | None = None,
        timeout: float | None = 300,
        startup_timeout: float | None = None,
        name: str | None = None,
        is_generator: bool | None = None,
        cloud: str | None = None,
        region: str | Sequence[str] | None = None,
        routing_region: str | None = None,
        nonpreemptible: bool = False,
        enable_memory_snapshot: bool = False,
        block_network: bool = False,
        restrict_modal_access: bool = False,
        single_use_containers: bool = False,
        i6pn: bool | None = None,
        include_source: bool | None = None,
        experimental_options: Mapping[str, object] | None = None,
    ) -> FunctionDecorator:
        """Register a function; see docs/sdk.md for every keyword.

        Raises:
            InvalidError: no parentheses, or a value that is out of range or not supported yet.
        """
        if _missing_parentheses is not None:
            raise InvalidError(
                "@app.function was used without parentheses", hint="write @app.function()"
            )
        refuse_unsupported(
            "@app.function",
            {
                "schedule": schedule, "secrets": secrets, "gpu": gpu, "volumes": volumes,
                "network_file_systems": network_file_systems, "ephemeral_disk": ephemeral_disk,
                "proxy": proxy, "cloud": cloud, "region": region, "routing_region": routing_region,
                "nonpreemptible": nonpreemptible, "enable_memory_snapshot": enable_memory_snapshot,
                "restrict_modal_access": restrict_modal_access, "i6pn": i6pn,
                "experimental_options": experimental_options,
            },
        )  # fmt: skip
        fields = {
            **resource_fields(cpu, memory),
            **scaling_fields(min_containers, max_containers, buffer_containers, scaledown_window),
            **time_fields(timeout, startup_timeout, retries),
            "env": check_env("env", dict(env or {})),
            "block_network": bool(block_network),
            "single_use": bool(single_use_containers),
        }
        includes = self.includes_source if include_source is None else include_source

        def decorate(raw: Any) -> Any:
            made: Function[Any, Any, Any] = Function(
                raw,
                app=self,
                name=_name_of(raw, name, serialized=serialized),
                image=image,
                fields=fields,
                is_generator=is_generator,
                is_serialized=serialized,
                includes_source=includes,
            )
            self._register(made)
            return made

        return decorate

    def local_entrypoint(
        self, _missing_parentheses: object = None, *, name: str | None = None
    ) -> Callable[[Callable[P, R]], LocalEntrypoint[P, R]]:
        """Register a function that ``hostctl run`` calls here, while the app runs."""
        if _missing_parentheses is not None:
            raise InvalidError(
                "@app.local_entrypoint was used without parentheses",
                hint="write @app.local_entrypoint()",
            )

        def decorate(raw: Callable[P, R]) -> LocalEntrypoint[P, R]:
            from hostd.sdk.entrypoint import LocalEntrypoint

            entry_name = name if name is not None else raw.__qualname__
            if entry_name in self.registered_entrypoints and not is_interactive():
                raise InvalidError(f"local entrypoint {entry_name} is defined twice")
            entry = LocalEntrypoint(raw, app=self, name=entry_name)
            self.registered_entrypoints[entry_name] = entry
            return entry

        return decorate

    def run(
        self,
        *,
        name: str | None = None,
        client: Client | None = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: str | None = None,
        observer: Observer | None = None,
    ) -> AppRun:
        """Run the app for the length of a ``with`` block, or of an ``async with`` block.

        Images are built, code is uploaded, and the functions can be called until the block ends.
        """
        refuse_unsupported(
            "app.run",
            {"detach": detach, "interactive": interactive, "environment_name": environment_name},
        )
        if not is_local():
            raise InvalidError(
                "app.run was called in a container",
                hint='put it below `if __name__ == "__main__":` or in a local entrypoint',
            )
        from hostd.sdk.session import AppRun

        wanted = self.description if name is None else check_name("app name", name)
        return AppRun(self, name=wanted, client=client, observer=observer)

    def _register(self, made: Function[Any, Any, Any]) -> None:
        old = self.registered_functions.get(made.name)
        if old is not None and not is_interactive() and is_local():
            import warnings

            warnings.warn(
                f"function {made.name} of {old.__module__} is replaced by {made.__module__}."
                f"{made.__qualname__}: two functions of an app have one name",
                stacklevel=3,
            )
        self.registered_functions[made.name] = made

    def __reduce__(self) -> tuple[Any, ...]:
        return App, (self.name,)

    def __repr__(self) -> str:
        return f"<hostd.App {self.description}>"


def _name_of(raw: Any, name: str | None, *, serialized: bool) -> str:
    """The name of a function in its app; checks that a container can find the function.

    Raises:
        InvalidError: it is no plain function, or it cannot be found by name and is not serialized.
    """
    if isinstance(raw, Function):
        raise InvalidError(f"function {raw.name} is decorated with @app.function() twice")
    qualname = getattr(raw, "__qualname__", None)
    if not callable(raw) or isinstance(raw, type) or qualname is None:
        raise InvalidError(
            f"@app.function() was put on {raw!r}, which is not a function",
            hint="classes are not supported yet",
        )
    if not serialized and is_local():
        _check_importable(raw, qualname)
    if name is None:
        name = qualname.rpartition("<locals>.")[2].replace("<lambda>", "lambda")
    return check_name("function name", name)


def _as_name(text: str) -> str:
    """The name of a script as the name of an app."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "-" for c in text)
    return kept[:NAME_LENGTH_MAX].lstrip("-.") or "app"


def _check_importable(raw: Any, qualname: str) -> None:
    hint = "@app.function(serialized=True) sends the function by value"
    if "<lambda>" in qualname or "<locals>" in qualname:
        raise InvalidError(
            f"function {qualname} is not at the top level of a module: containers cannot import it",
            hint=hint,
        )
    module = getattr(raw, "__module__", None) or "__main__"
    if container_name(module) is None or module not in sys.modules:
        raise InvalidError(
            f"function {qualname} was defined at a prompt or in a notebook: "
            "there is no file that containers could import",
            hint=hint,
        )
