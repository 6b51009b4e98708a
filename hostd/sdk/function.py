"""Function: a Python function that runs in containers.

The object replaces the function in the user's module. Its methods ``remote``, ``map`` and so on
load the calling code when they are first used: in a container, where nobody calls, they cost
nothing.
"""

from __future__ import annotations

from hostd.errors import InvalidError
from hostd.sdk.context import is_local
from hostd.sdk.generic import Generic, L_co, P, R_co, Y_co, overload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Iterable,
        Iterator,
        Mapping,
    )
    from typing import Any, Literal, NoReturn, Union

    from hostd.sdk.app import App
    from hostd.sdk.calling import Target
    from hostd.sdk.image import Image

    Inputs = Union[Iterable[Any], AsyncIterable[Any]]

CO_GENERATOR, CO_ASYNC_GENERATOR = 0x20, 0x200
"""Flags of code objects; the module ``inspect`` costs too much to import for two numbers."""
_LATER = frozenset(
    [
        "spawn",
        "spawn_map",
        "from_name",
        "with_options",
        "with_concurrency",
        "with_batching",
        "update_autoscaler",
        "get_current_stats",
        "get_web_url",
        "keep_warm",
        "logs",
    ]
)


class Function(Generic[P, R_co, L_co]):
    """A function of an app; made by ``@app.function()``."""

    def __init__(
        self,
        raw: Callable[P, L_co],
        *,
        app: App,
        name: str,
        image: Image | None = None,
        fields: dict[str, object] | None = None,
        is_generator: bool | None = None,
        is_serialized: bool = False,
        includes_source: bool = True,
    ) -> None:
        self._raw = raw
        self.app = app
        self.name = name
        self._image = image
        self.fields = fields or {}
        """What ``@app.function`` said, in the API's words (see ``hostd/sdk/options.py``)."""
        self.is_generator = makes_generator(raw) if is_generator is None else is_generator
        self.is_serialized = is_serialized
        self.includes_source = includes_source
        self.target: Target | None = None
        """Where calls go while the app runs."""
        self.remote: Remote[P, R_co] = Remote(self)
        self.map: Map[R_co] = Map(self)
        self.starmap: Starmap[R_co] = Starmap(self)
        self.for_each: ForEach = ForEach(self)
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(self, attribute, getattr(raw, attribute, None))

    @property
    def __wrapped__(self) -> Callable[P, L_co]:
        return self._raw

    @property
    def image(self) -> Image | None:
        """Its own image, or the app's."""
        return self._image if self._image is not None else self.app.image

    @property
    def _hostd_raw(self) -> Callable[P, L_co]:
        """The user's function; the runner takes it from here when it serves this function.

        An import that ``image.imports()`` let pass is due now: it was for this container.
        """
        image = self.image
        if image is not None and image.import_error is not None and not is_local():
            raise image.import_error
        return self._raw

    @property
    def local(self) -> Callable[P, L_co]:
        """The function itself: ``f.local(x)`` runs it in this process."""
        return self._raw

    @property
    def remote_gen(self: Function[P, Iterator[Y_co], Any]) -> RemoteGen[P, Y_co]:
        """Run a generator function in a container; its values arrive as it yields them."""
        return RemoteGen(self)

    def get_raw_f(self) -> Callable[P, L_co]:
        """The function that was decorated."""
        return self._raw

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it would not say where to run."""
        raise InvalidError(
            f"function {self.name} was called directly",
            hint=f"{self.name}.remote(...) runs it in a container, {self.name}.local(...) here",
        )

    def __getattr__(self, name: str) -> Any:
        if name in _LATER:
            raise AttributeError(f"Function.{name} is not supported yet")
        raise AttributeError(f"Function has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<hostd.Function {self.name} of app {self.app.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from hostd.sdk.reference import reduce_function

        return reduce_function(self)


def makes_generator(raw: Any) -> bool:
    """Whether calling a function gives a generator, as far as its code object tells."""
    code = getattr(raw, "__code__", None)
    return code is not None and bool(code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))


class _Method:
    """A method of a Function that also has an ``aio`` form."""

    __slots__ = ("_function",)

    def __init__(self, function: Function[Any, Any, Any]) -> None:
        self._function = function


class Remote(_Method, Generic[P, R_co]):
    """``f.remote(...)``: run it in a container and wait for its result."""

    __slots__ = ()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run it; raises what the function raised, with the frames of the container."""
        from hostd.sdk.calling import call

        return call(self._function, args, kwargs)  # type: ignore[no-any-return]  # a pickled R

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The same without blocking the event loop; cancelling the task cancels the call."""
        from hostd.sdk.calling import call_async

        return await call_async(self._function, args, kwargs)  # type: ignore[no-any-return]  # as above


class RemoteGen(_Method, Generic[P, Y_co]):
    """``f.remote_gen(...)``: the values of a generator function, as they are yielded."""

    __slots__ = ()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Y_co]:
        """Iterate over the values; leaving the iteration cancels the call."""
        from hostd.sdk.generating import generate

        return generate(self._function, args, kwargs)

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Y_co]:
        """The same for ``async for``."""
        from hostd.sdk.generating import generate_async

        return generate_async(self._function, args, kwargs)


class Map(_Method, Generic[R_co]):
    """``f.map(xs, ys, ...)``: one call per zipped element, spread over containers."""

    __slots__ = ()

    @overload
    def __call__(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = ...,
        order_outputs: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> Iterator[R_co]: ...

    @overload
    def __call__(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = ...,
        order_outputs: bool = ...,
        return_exceptions: bool,
    ) -> Iterator[R_co | Exception]: ...

    def __call__(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Results in the order of the inputs, or as they finish with ``order_outputs=False``.

        Inputs are taken from the iterators as room for them appears. The first failure raises and
        cancels the rest, unless ``return_exceptions``.
        """
        from hostd.sdk.mapping import map_inputs

        return map_inputs(
            self._function,
            _zipped(input_iterators),
            kwargs=kwargs,
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
        )

    @overload
    def aio(
        self,
        *input_iterators: Inputs,
        kwargs: Mapping[str, Any] = ...,
        order_outputs: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> AsyncIterator[R_co]: ...

    @overload
    def aio(
        self,
        *input_iterators: Inputs,
        kwargs: Mapping[str, Any] = ...,
        order_outputs: bool = ...,
        return_exceptions: bool,
    ) -> AsyncIterator[R_co | Exception]: ...

    def aio(
        self,
        *input_iterators: Inputs,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        """The same for ``async for``; the inputs may be async iterators, too."""
        from hostd.sdk.mapping import map_inputs_async
        from hostd.sdk.pump import zipped_async

        return map_inputs_async(
            self._function,
            zipped_async(input_iterators),
            kwargs=kwargs,
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
        )


class Starmap(_Method, Generic[R_co]):
    """``f.starmap(pairs)``: like map, each input a tuple of arguments."""

    __slots__ = ()

    @overload
    def __call__(
        self,
        input_iterator: Iterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = ...,
        order_outputs: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> Iterator[R_co]: ...

    @overload
    def __call__(
        self,
        input_iterator: Iterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = ...,
        order_outputs: bool = ...,
        return_exceptions: bool,
    ) -> Iterator[R_co | Exception]: ...

    def __call__(
        self,
        input_iterator: Iterable[Iterable[Any]],
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """See ``map``."""
        from hostd.sdk.mapping import map_inputs

        return map_inputs(
            self._function,
            input_iterator,
            kwargs=kwargs,
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
        )

    def aio(
        self,
        input_iterator: Inputs,
        *,
        kwargs: Mapping[str, Any] = {},
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        """The same for ``async for``."""
        from hostd.sdk.mapping import map_inputs_async

        return map_inputs_async(
            self._function,
            input_iterator,
            kwargs=kwargs,
            order_outputs=order_outputs,
            return_exceptions=return_exceptions,
        )


class ForEach(_Method):
    """``f.for_each(xs)``: like map, for effects only."""

    __slots__ = ()

    def __call__(
        self,
        *input_iterators: Iterable[Any],
        kwargs: Mapping[str, Any] = {},
        ignore_exceptions: bool = False,
    ) -> None:
        """Wait until every input is done; results are dropped."""
        from hostd.sdk.mapping import map_inputs

        for _ in map_inputs(
            self._function,
            _zipped(input_iterators),
            kwargs=kwargs,
            order_outputs=False,
            return_exceptions=ignore_exceptions,
        ):
            pass

    async def aio(
        self,
        *input_iterators: Inputs,
        kwargs: Mapping[str, Any] = {},
        ignore_exceptions: bool = False,
    ) -> None:
        """The same without blocking the event loop."""
        from hostd.sdk.mapping import map_inputs_async
        from hostd.sdk.pump import zipped_async

        async for _ in map_inputs_async(
            self._function,
            zipped_async(input_iterators),
            kwargs=kwargs,
            order_outputs=False,
            return_exceptions=ignore_exceptions,
        ):
            pass


def _zipped(input_iterators: tuple[Iterable[Any], ...]) -> Iterator[tuple[Any, ...]]:
    if not input_iterators:
        raise InvalidError(
            "map was given no inputs", hint="pass at least one iterable: f.map([1, 2])"
        )
    return zip(*input_iterators)
