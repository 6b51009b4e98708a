"""Defining apps and functions: what the API is sent, what is refused at once."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import hostd
from hostd import exception
from hostd.model import AppRequest, FunctionSpec
from tests.fakes.fake_api import FakeAPI
from tests.fakes.sample_functions import square


def plain(value: int = 0) -> int:
    return value


def new_app(**kwargs: Any) -> hostd.App:
    return hostd.App("apps", include_source=False, **kwargs)


def spec_of(api: FakeAPI, app: hostd.App) -> FunctionSpec:
    """The only function that the host was told of, decoded as the daemon does."""
    with app.run():
        pass
    (request,) = api.apps.values()
    (spec,) = msgspec.convert(request, AppRequest).functions
    return spec


def test_defaults_leave_the_choice_to_the_host(api: FakeAPI) -> None:
    app = new_app()
    app.function()(plain)
    spec = spec_of(api, app)
    assert spec == FunctionSpec(
        name="plain", image_id=spec.image_id, module=plain.__module__, qualname="plain"
    )


def test_every_keyword_reaches_the_host(api: FakeAPI) -> None:
    app = new_app()
    app.function(
        name="other",
        cpu=(0.5, 2),
        memory=(256, 1024),
        min_containers=1,
        max_containers=5,
        buffer_containers=2,
        scaledown_window=30,
        timeout=10,
        startup_timeout=20.5,
        retries=hostd.Retries(max_retries=3, initial_delay=0.5),
        env={"A": "1"},
        block_network=True,
        single_use_containers=True,
        is_generator=True,
    )(plain)
    spec = spec_of(api, app)
    assert msgspec.to_builtins(spec).items() >= {
        "name": "other", "cpu": 0.5, "cpu_limit": 2.0, "memory_mib": 256, "memory_limit_mib": 1024,
        "min_containers": 1, "max_containers": 5, "buffer_containers": 2,
        "scaledown_window_s": 30.0, "timeout_s": 10.0, "startup_timeout_s": 20.5,
        "env": {"A": "1"}, "block_network": True, "single_use": True, "is_generator": True,
        "retries": {"max_retries": 3, "backoff_coefficient": 2.0, "initial_delay_s": 0.5,
                    "max_delay_s": 60.0},
    }.items()  # fmt: skip


def test_a_number_of_retries_means_fixed_delays_of_a_second(api: FakeAPI) -> None:
    app = new_app()
    app.function(retries=2)(plain)
    retries = spec_of(api, app).retries
    assert (retries.max_retries, retries.backoff_coefficient, retries.initial_delay_s) == (2, 1, 1)


def test_the_apps_image_is_the_default_of_its_functions(api: FakeAPI) -> None:
    own, shared = hostd.Image.from_name("own"), hostd.Image.from_name("shared")
    app = new_app(image=shared)
    app.function(name="a")(plain)
    app.function(name="b", image=own)(plain)
    with app.run():
        pass
    steps = [build["recipe"]["steps"][0]["image"] for build in api.builds]
    assert sorted(steps) == ["own", "shared"]


def test_equal_images_are_built_once(api: FakeAPI) -> None:
    app = new_app()
    app.function(name="a", image=hostd.Image.debian_slim().env({"A": "1"}))(plain)
    app.function(name="b", image=hostd.Image.debian_slim().env({"A": "1"}))(plain)
    with app.run():
        pass
    assert len(api.builds) == 1


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("gpu", "H100"), ("volumes", {"/data": object()}), ("secrets", [object()]),
        ("schedule", object()), ("cloud", "aws"), ("region", "eu"), ("ephemeral_disk", 1024),
        ("enable_memory_snapshot", True), ("nonpreemptible", True), ("i6pn", True),
        ("experimental_options", {"a": 1}), ("network_file_systems", {"/n": object()}),
        ("proxy", object()), ("routing_region", "eu"), ("restrict_modal_access", True),
    ],
)  # fmt: skip
def test_keywords_of_later_versions_are_refused_by_name(keyword: str, value: object) -> None:
    with pytest.raises(exception.InvalidError, match=f"{keyword}= is not supported yet"):
        new_app().function(**{keyword: value})


def test_unknown_keywords_are_errors() -> None:
    with pytest.raises(TypeError, match="colour"):
        new_app().function(colour="red")  # type: ignore[call-arg]  # on purpose


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"cpu": 0}, r"cpu is 0, expected 0\.001 to 1024"),
        ({"cpu": (2, 1)}, "cpu limit is 1, less than the request 2"),
        ({"cpu": (1, 2, 3)}, "expected a number or"),
        ({"memory": 8}, "memory is 8, expected 16"),
        ({"memory": "1G"}, "memory is '1G'"),
        ({"timeout": 0}, r"timeout is 0, expected 0\.01 to 86400"),
        ({"timeout": 100_000}, "timeout is 100000"),
        ({"scaledown_window": 1}, "scaledown_window is 1, expected 2 to 1200"),
        ({"min_containers": 3, "max_containers": 2}, "min_containers is 3, max_containers is 2"),
        ({"max_containers": 0}, "max_containers is 0, expected 1"),
        ({"max_containers": 1.5}, r"max_containers is 1\.5"),
        ({"retries": -1}, "max_retries is -1, expected 0 to 100"),
        ({"retries": "3"}, "retries is '3'"),
        ({"env": {"A": 1}}, "env: A is 1, expected a str"),
        ({"env": {"A-B": "1"}}, "'A-B' is not the name"),
        ({"name": "a b"}, "function name 'a b' is not a name"),
    ],
)
def test_values_out_of_range_are_refused_with_value_and_range(
    keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(exception.InvalidError, match=message):
        new_app().function(**keywords)(plain)


def test_retries_are_checked() -> None:
    with pytest.raises(exception.InvalidError, match="backoff_coefficient is 11"):
        hostd.Retries(max_retries=1, backoff_coefficient=11)
    with pytest.raises(exception.InvalidError, match=r"max_delay is 0\.5"):
        hostd.Retries(max_retries=1, max_delay=0.5)


def test_missing_parentheses_are_named() -> None:
    app = new_app()
    with pytest.raises(exception.InvalidError, match="without parentheses") as caught:
        app.function(plain)
    assert caught.value.hint == "write @app.function()"
    with pytest.raises(exception.InvalidError, match="without parentheses"):
        app.local_entrypoint(plain)


def test_functions_that_containers_cannot_import_get_the_hint() -> None:
    def inner() -> None:
        pass

    unusable: list[Callable[..., Any]] = [lambda: 1, inner]
    for raw in unusable:
        with pytest.raises(exception.InvalidError, match="not at the top level") as caught:
            new_app().function()(raw)
        assert "serialized=True" in str(caught.value.hint)


def test_closures_can_be_serialized(api: FakeAPI) -> None:
    factor = 3
    app = new_app()

    @app.function(serialized=True)
    def times(value: int) -> int:
        return factor * value

    triple = app.function(serialized=True, name="triple")(lambda value: 3 * value)
    with app.run():
        assert times.remote(4) == triple.remote(4) == 12
    assert [spec["name"] for spec in next(iter(api.apps.values()))["functions"]] == [
        "times",
        "triple",
    ]


def test_functions_that_cannot_be_pickled_are_named(api: FakeAPI) -> None:
    lock = pytest.importorskip("threading").Lock()
    app = new_app()

    @app.function(serialized=True)
    def locked() -> None:
        with lock:
            pass

    with pytest.raises(exception.SerializationError, match="function locked"):
        app.run().__enter__()
    assert app.session is None


def test_what_is_not_a_function_is_refused() -> None:
    class Thing:
        pass

    with pytest.raises(exception.InvalidError, match="is not a function"):
        new_app().function()(Thing)
    with pytest.raises(exception.InvalidError, match="twice"):
        new_app().function()(square)


def test_two_functions_of_one_name_warn() -> None:
    app = new_app()
    app.function(name="same")(plain)
    with pytest.warns(UserWarning, match="two functions of an app have one name"):
        app.function(name="same")(test_missing_parentheses_are_named)


def test_running_in_a_container_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTD_IS_REMOTE", "1")
    assert not hostd.is_local()
    with pytest.raises(exception.InvalidError, match="in a container") as caught:
        new_app().run()
    assert "__main__" in str(caught.value.hint)


def test_calling_from_a_container_says_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTD_IS_REMOTE", "1")
    with pytest.raises(exception.InvalidError, match="from a container"):
        square.remote(1)


def test_functions_defined_while_the_app_runs_are_named(api: FakeAPI) -> None:
    app = new_app()
    with app.run():
        late = app.function()(plain)
        with pytest.raises(exception.InvalidError, match="after its app had begun to run"):
            late.remote(1)


def test_detached_runs_are_not_supported_yet() -> None:
    with pytest.raises(exception.InvalidError, match="detach= is not supported yet"):
        new_app().run(detach=True)


def test_names_of_apps_are_checked() -> None:
    with pytest.raises(exception.InvalidError, match=re.escape("app name 'a/b' is not a name")):
        hostd.App("a/b")
    assert hostd.App().description


def test_the_runner_finds_the_raw_function_and_metadata() -> None:
    assert square._hostd_raw(3) == 9
    assert square.get_raw_f() is square._hostd_raw
    assert (square.__name__, square.__module__) == ("square", "tests.fakes.sample_functions")


def test_functions_that_can_be_imported_pickle_by_name() -> None:
    assert pickle.loads(pickle.dumps(square)) is square


def test_names_of_later_versions_say_so() -> None:
    with pytest.raises(AttributeError, match="not support"):
        hostd.Volume  # type: ignore[attr-defined]  # noqa: B018 - on purpose
    with pytest.raises(AttributeError, match="spawn is not supported yet"):
        square.spawn(1)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        hostd.colour  # type: ignore[attr-defined]  # noqa: B018 - on purpose
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        square.colour  # noqa: B018 - on purpose


def test_public_names_are_complete() -> None:
    for name in ("App", "Function", "Image", "Retries", "is_local", "enable_output", "exception"):
        assert name in dir(hostd)
        assert getattr(hostd, name) is not None
    assert hostd.exception.InvalidError is exception.InvalidError


def test_local_entrypoints_are_registered_and_callable() -> None:
    app = new_app()

    @app.local_entrypoint()
    def main(value: int) -> int:
        return value + 1

    assert main(1) == 2
    assert list(app.registered_entrypoints) == [main.name]
    with pytest.raises(exception.InvalidError, match="defined twice"):
        app.local_entrypoint(name=main.name)(plain)
