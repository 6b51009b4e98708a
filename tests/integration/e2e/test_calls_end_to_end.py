"""Calls through everything real: SDK, stream, scheduler, runc, runner."""

import asyncio
import itertools
import threading

import basics
import pytest

from hostd.errors import InvalidError


@pytest.fixture(scope="module", autouse=True)
def app(daemon):
    with basics.app.run():
        yield basics.app


def test_remote_returns_the_value():
    assert basics.square.remote(7) == 49


def test_keyword_arguments_and_defaults_arrive():
    assert basics.add.remote(1) == 11
    assert basics.add.remote(right=2, left=1) == 3


def test_local_runs_here():
    assert basics.square.local(3) == 9


def test_map_keeps_the_order_of_its_inputs():
    assert list(basics.slow_square.map(range(20))) == [n * n for n in range(20)]


def test_map_in_any_order_gives_every_result():
    assert sorted(basics.slow_square.map(range(20), order_outputs=False)) == sorted(
        n * n for n in range(20)
    )


def test_map_of_nothing_ends_at_once():
    assert list(basics.square.map([])) == []


def test_map_pulls_its_input_lazily():
    pulled = []
    endless = (pulled.append(n) or n for n in itertools.count())
    assert list(itertools.islice(basics.square.map(endless), 5)) == [0, 1, 4, 9, 16]
    assert len(pulled) <= 3_000


def test_map_zips_several_iterables_and_takes_kwargs():
    assert list(basics.add.map([1, 2], [3, 4])) == [4, 6]
    assert list(basics.add.map([1, 2], kwargs={"right": 100})) == [101, 102]


def test_starmap_and_for_each():
    assert list(basics.add.starmap([(1, 2), (3, 4)])) == [3, 7]
    assert basics.square.for_each([1, 2]) is None


def test_first_failure_of_a_map_is_raised():
    with pytest.raises(basics.UserError) as caught:
        list(basics.odd_fails.map([0, 2, 3, 4]))
    assert caught.value.number == 3


def test_map_can_return_exceptions():
    results = list(basics.odd_fails.map(range(4), return_exceptions=True))
    assert [getattr(r, "number", r) for r in results] == [0, 1, 2, 3]
    assert [isinstance(r, basics.UserError) for r in results] == [False, True, False, True]


def test_an_error_in_the_input_iterator_reaches_the_caller():
    def inputs():
        yield 1
        raise RuntimeError("the iterator broke")

    with pytest.raises(RuntimeError, match="the iterator broke"):
        list(basics.square.map(inputs()))


def test_generator_values_arrive_in_order():
    assert list(basics.count.remote_gen(5)) == [0, 1, 2, 3, 4]
    assert list(basics.async_count.remote_gen(3)) == [0, 1, 2]


def test_values_before_an_error_of_a_generator_arrive():
    values = []
    with pytest.raises(basics.UserError):
        for value in basics.count_and_fail.remote_gen(2):
            values.append(value)
    assert values == [0, 1]


def test_remote_on_a_generator_is_refused():
    with pytest.raises(InvalidError, match="generator") as caught:
        basics.count.remote(3)
    assert "remote_gen" in str(caught.value.hint)


def test_async_function_and_aio_twins():
    assert basics.async_double.remote(4) == 8

    async def main():
        one = await basics.square.remote.aio(5)
        many = [value async for value in basics.square.map.aio(range(4))]
        generated = [value async for value in basics.count.remote_gen.aio(3)]
        together = await asyncio.gather(*(basics.square.remote.aio(n) for n in range(5)))
        return one, many, generated, together

    assert asyncio.run(main()) == (25, [0, 1, 4, 9], [0, 1, 2], [0, 1, 4, 9, 16])


def test_calls_from_many_threads_do_not_mix():
    results = {}

    def work(number):
        results[number] = basics.square.remote(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: n * n for n in range(16)}


def test_retries_run_a_failed_input_again():
    assert basics.third_time_lucky.remote("x") == 3


def test_a_large_argument_and_result_arrive_whole():
    data = bytes(range(256)) * (8 * 4096)
    assert basics.echo.remote(data) == data


def test_container_stays_warm_between_calls():
    assert len({basics.same_process.remote(n) for n in range(5)}) == 1


def test_single_use_containers_answer_one_input_each():
    assert len(set(basics.container_of.map(range(4)))) == 4


def test_code_in_the_container_knows_where_it_is():
    facts = basics.where.remote()
    assert facts["is_local"] is False
    assert facts["cwd"] == "/root"
    assert str(facts["container"]).startswith("ct-")
    assert str(facts["call"]).startswith("fc-")
    assert facts["input"]
    assert facts["seccomp"] == "2"
    assert int(str(facts["capabilities"]), 16) & (1 << 21) == 0  # CAP_SYS_ADMIN


def test_orphans_are_reaped():
    assert basics.double_fork.remote() == 0
