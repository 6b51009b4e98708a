"""One run of an app: build its images, upload its code, create it, call it, stop it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from hostd.errors import Error, InvalidError
from hostd.sdk.building import build
from hostd.sdk.calling import Target
from hostd.sdk.client import Client
from hostd.sdk.entry_module import bring_script, container_name
from hostd.sdk.image import Image
from hostd.sdk.output import default_observer
from hostd.sdk.payload import pack_function
from hostd.sdk.recipe import build_request
from hostd.sdk.source import Entry, of_function
from hostd.sdk.stream import Stream
from hostd.sdk.upload import Contents

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from hostd.sdk.app import App
    from hostd.sdk.function import Function
    from hostd.sdk.output import Observer

STOP_TIMEOUT_S = 10.0
"""Of the request that stops the app; the end of the stream stops it anyway."""
FLUSH_TIMEOUT_S = 1.0


class AppRun:
    """What ``app.run()`` returns: a context manager, also an asynchronous one."""

    def __init__(
        self, app: App, *, name: str, client: Client | None, observer: Observer | None
    ) -> None:
        self._app = app
        self._name = name
        self._client = client
        self._observer = observer

    def __enter__(self) -> App:
        if self._app.session is not None:
            raise InvalidError(f"app {self._name} is running already")
        client = self._client or Client.from_env()
        observer = self._observer or default_observer()
        session = Session(self._app, self._name, client, observer)
        try:
            session.start()
        except BaseException:
            client.close()
            raise
        return self._app

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._app.session is not None:
            self._app.session.stop()

    async def __aenter__(self) -> App:
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(None, self.__enter__)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import asyncio

        # Also when this task is cancelled: the app must not go on running.
        work = asyncio.get_running_loop().run_in_executor(None, self.__exit__, None, None, None)
        await asyncio.shield(work)


class Session:
    """A running app on the side of its client."""

    def __init__(self, app: App, name: str, client: Client, observer: Observer) -> None:
        self._app = app
        self._name = name
        self._client = client
        self._observer = observer
        self._contents = Contents()
        self._functions = list(app.registered_functions.values())
        self._stream: Stream | None = None
        self.app_id = ""

    def start(self) -> None:
        """Make every function callable.

        Raises:
            Error: an image cannot be built, a file cannot be read, the host refuses.
        """
        if any(f.includes_source and f.__module__ == "__main__" for f in self._functions):
            bring_script()
        image_ids = self._build_images()
        specs = [self._spec(function, image_ids) for function in self._functions]
        self._contents.upload(self._client, self._observer)
        # First the stream, then the app: from its first moment on the app has an owner.
        self._stream = Stream.open(
            self._client, on_logs=self._observer.logs, on_container=self._observer.container
        )
        try:
            self._create(specs)
        except BaseException:
            self._stream.close()
            raise

    def stop(self) -> None:
        """End the app and the stream; calls that are still open fail."""
        self._app.session = None
        for function in self._functions:
            function.target = None
        assert self._stream is not None
        try:
            if self._stream.error is None:
                # What was cancelled last must be on its way before the connection closes.
                self._stream.flush(FLUSH_TIMEOUT_S)
                self._request_stop()
        finally:
            # Also when Ctrl-C comes a second time: this alone stops the app.
            self._stream.close()
            self._client.close()
        self._observer.stopped(self.app_id)

    def _request_stop(self) -> None:
        try:
            path = f"/api/v1/apps/{self.app_id}/stop"
            self._client.request("POST", path, timeout=STOP_TIMEOUT_S)
        except Error:
            pass  # The end of the stream stops the app as well.

    # --- the steps of start -------------------------------------------------------------------

    def _build_images(self) -> dict[int, str]:
        """The id of every image in use, by the identity of its Image object."""
        images = {id(image): image for image in map(_image_of, self._functions)}
        requests = {key: build_request(image, self._contents) for key, image in images.items()}
        self._contents.upload(self._client, self._observer)
        built: dict[str, str] = {}
        found = {}
        for key, request in requests.items():
            text = json.dumps(request, sort_keys=True)
            if text not in built:
                built[text] = build(
                    self._client,
                    request,
                    self._observer,
                    image=len(built) + 1,
                    images=len(requests),
                )
            found[key] = built[text]
        return found

    def _spec(
        self, function: Function[Any, Any, Any], image_ids: dict[int, str]
    ) -> dict[str, object]:
        """The FunctionSpec record of a function; its code is noted for upload."""
        raw = function.get_raw_f()
        spec: dict[str, object] = {
            **function.fields,
            "name": function.name,
            "image_id": image_ids[id(_image_of(function))],
            "is_generator": function.is_generator,
        }
        entries: list[Entry] = of_function(function)
        spec["source"] = self._contents.describe(entries)
        if function.is_serialized:
            spec["serialized"] = self._contents.add_bytes(pack_function(raw, function.name))
            spec["python_version"] = f"{sys.version_info[0]}.{sys.version_info[1]}"
        else:
            spec["module"] = container_name(raw.__module__)
            spec["qualname"] = raw.__qualname__
        return spec

    def _create(self, specs: list[dict[str, object]]) -> None:
        assert self._stream is not None
        request = {"name": self._name, "functions": specs}
        info = self._client.request("POST", "/api/v1/apps", request)
        self.app_id = info["id"]
        self._stream.attach(self.app_id)
        ids = {function["name"]: function["id"] for function in info["functions"]}
        for function in self._functions:
            function.target = Target(self._stream, ids[function.name])
        self._app.session = self
        self._observer.running(self.app_id, self._name)


_default_image = Image.debian_slim()


def _image_of(function: Function[Any, Any, Any]) -> Image:
    return function.image or _default_image
