"""What users' code does wrong, and the typed error that each ends in."""

import signal
import time

import basics
import pytest

from hostd.errors import (
    ContainerExitedError,
    ExecutionError,
    FunctionTimeoutError,
    OutOfMemoryError,
    RemoteError,
    SerializationError,
)


@pytest.fixture(scope="module", autouse=True)
def app(daemon):
    with basics.app.run():
        yield basics.app


def test_the_users_own_exception_type_arrives_with_its_remote_frames():
    with pytest.raises(basics.UserError) as caught:
        basics.fail.remote(5)
    assert caught.value.number == 5
    assert caught.value.args == ("as asked", 5)
    text = "".join(traceback_of(caught.value))
    assert "basics.py" in text
    assert "raise UserError" in text
    assert "hostd/runner" not in text


def traceback_of(error):
    import traceback

    return traceback.format_exception(error)


def test_an_exception_that_cannot_be_rebuilt_is_told_as_text():
    with pytest.raises(RemoteError, match="Unbuildable"):
        basics.fail_unbuildable.remote()


def test_a_result_that_cannot_be_pickled_names_its_type():
    with pytest.raises(SerializationError, match="lock"):
        basics.unpicklable.remote()


def test_an_argument_that_cannot_be_pickled_is_refused_here():
    import threading

    with pytest.raises((SerializationError, TypeError)):
        basics.square.remote(threading.Lock())


def test_os_exit_is_told_with_its_status_and_the_next_call_works():
    with pytest.raises(ContainerExitedError, match="3"):
        basics.leave.remote(3)
    assert basics.square.remote(2) == 4


def test_a_fatal_signal_is_told_by_number():
    with pytest.raises(ContainerExitedError, match="signal|SIG"):
        basics.die.remote(int(signal.SIGSEGV))


def test_sys_exit_ends_as_an_error_not_a_hang():
    with pytest.raises(ExecutionError):
        basics.system_exit.remote(4)


def test_out_of_memory_is_told_as_such_with_limit_and_peak():
    with pytest.raises(OutOfMemoryError) as caught:
        basics.eat_memory.remote()
    assert caught.value.fields["limit_bytes"] == 64 * 2**20
    assert 32 * 2**20 < caught.value.fields["peak_bytes"] <= 64 * 2**20


def test_endless_forking_stops_at_the_pids_limit():
    started = basics.fork_endlessly.remote()
    assert 100 < started < 1_024


def test_100_megabytes_of_output_pass_and_the_result_arrives(daemon):
    assert basics.write_much.remote(100) == 100


def test_a_function_over_its_timeout_is_stopped():
    begin = time.monotonic()
    with pytest.raises(FunctionTimeoutError, match="1"):
        basics.too_slow.remote()
    assert time.monotonic() - begin < 30


def test_endless_recursion_is_the_users_error():
    with pytest.raises(RecursionError):
        basics.recurse.remote(0)


def test_code_that_ignores_sigterm_ends_when_the_app_stops(daemon):
    import threading

    containers = lambda: daemon.client().request("GET", "/api/v1/containers")["items"]  # noqa: E731
    call = threading.Thread(target=lambda: pytest.raises(Exception, basics.ignore_sigterm.remote))
    call.start()
    deadline = time.monotonic() + 30
    while not any(c["function"] == "ignore_sigterm" and c["state"] == "busy" for c in containers()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (container,) = (c for c in containers() if c["function"] == "ignore_sigterm")
    daemon.client().request("POST", f"/api/v1/containers/{container['id']}/stop")
    daemon.client().request("POST", f"/api/v1/calls/{container['call_id']}/cancel")
    call.join(60)
    assert not call.is_alive()
    deadline = time.monotonic() + 30
    while any(c["id"] == container["id"] for c in containers()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
