"""What only an asynchronous client can do: many requests in flight, cancelling, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

import kvstate
from kvstate.errors import Conflict, NotFound, Unavailable
from tests.integration.daemons import DaemonProcess


@pytest.fixture
def daemon(tmp_path):
    process = DaemonProcess(tmp_path).start()
    yield process
    process.end()


def run(daemon, scenario, **options):
    async def connected():
        async with kvstate.aio.connect(daemon.socket, **options) as store:
            return await scenario(store)

    return asyncio.run(connected())


def test_many_requests_are_in_flight_on_one_connection(daemon):
    async def scenario(store):
        ns = store.namespace("ns")
        await asyncio.gather(*(ns.set(f"k{n}", n) for n in range(300)))
        values = await asyncio.gather(*(ns.get(f"k{n}") for n in range(300)))
        return values, len(store._client._open)

    values, connections = run(daemon, scenario, connections=1)

    assert values == list(range(300))
    assert connections == 1


def test_errors_reach_the_call_that_made_them(daemon):
    async def scenario(store):
        ns = store.namespace("ns")
        await ns.set("a", 1)
        return await asyncio.gather(
            ns.get("a"),
            ns.ttl("nope"),
            ns.set("a", 2, if_absent=True),
            ns.get("a"),
            return_exceptions=True,
        )

    first, absent, taken, last = run(daemon, scenario)

    assert (first, last) == (1, 1)
    assert isinstance(absent, NotFound)
    assert isinstance(taken, Conflict)


def test_a_cancelled_call_spoils_no_other(daemon):
    async def scenario(store):
        ns = store.namespace("ns")
        await ns.set_many({f"k{n}": n for n in range(50)})
        calls = [asyncio.ensure_future(ns.get(f"k{n}")) for n in range(50)]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert await ns.get("k7") == 7
        return found

    found = run(daemon, scenario, connections=1)

    for n, value in enumerate(found):
        assert value == n or isinstance(value, asyncio.CancelledError)
    assert sum(isinstance(value, int) for value in found) >= 33


def test_a_watch_ends_when_it_is_cancelled(daemon):
    async def scenario(store):
        ns = store.namespace("ns")
        seen, enough = [], asyncio.Event()

        async def watch(since):
            async for event in store.watch("ns", since):
                seen.append(event.value)
                if len(seen) == 5:
                    enough.set()

        watching = asyncio.ensure_future(watch(await store.revision()))
        for n in range(5):
            await ns.set("a", n)
        async with asyncio.timeout(20):
            await enough.wait()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await ns.set("a", 9)
        return seen

    assert run(daemon, scenario) == [0, 1, 2, 3, 4]


def test_a_daemon_that_does_not_answer_meets_the_deadline(tmp_path):
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()

        async def scenario():
            async with kvstate.aio.connect(path, timeout=0.05):
                pass

        with pytest.raises(Unavailable, match="no answer within"):
            asyncio.run(scenario())


def test_nobody_there_is_said(tmp_path):
    async def scenario():
        async with kvstate.aio.connect(tmp_path / "nobody.sock"):
            pass

    with pytest.raises(Unavailable, match="nobody answers"):
        asyncio.run(scenario())


def test_it_goes_on_with_a_daemon_that_was_started_anew(daemon):
    async def scenario(store):
        ns = store.namespace("ns")
        await ns.set("a", 1)
        await asyncio.to_thread(daemon.kill)
        await asyncio.to_thread(daemon.start)
        return await ns.get("a")

    assert run(daemon, scenario) == 1


def test_a_lost_write_says_that_nobody_knows(daemon):
    async def scenario(store):
        ns = store.namespace("ns")
        await ns.set("a", 1)
        daemon.process.send_signal(19)  # SIGSTOP: the request arrives, the answer does not
        lost = asyncio.ensure_future(ns.set("a", 2))
        await asyncio.sleep(0)
        await asyncio.to_thread(daemon.kill)
        with pytest.raises(Unavailable, match="not known"):
            await lost

    run(daemon, scenario)


def test_transactions_and_series_are_awaited(daemon):
    async def scenario(store):
        a, b = store.namespace("a"), store.namespace("b")
        await a.set("n", 10)
        async with store.transaction() as t:
            await t.namespace("a").increment("n", -4)
            await t.namespace("b").set("n", 4, ttl=60)
        with pytest.raises(Conflict):
            async with store.transaction() as late:
                await late.namespace("b").set("n", await late.namespace("a").get("n"))
                await a.set("n", 0)
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as broken:
                await broken.namespace("a").delete("n")
                raise ZeroDivisionError
        followers = a.series("followers", max_count=3)
        for day in range(1, 6):
            await followers.append(day * 10, day * 86400.0)
        points = [point.value for point in await followers.range()]
        return await a.get("n"), await b.get("n"), t.revision, points, await followers.change(86400)

    left, right, revision, points, change = run(daemon, scenario)

    assert (left, right, points, change) == (0, 4, [30, 40, 50], 10)
    assert revision > 0


def test_locks_exclude_and_are_released(daemon):
    async def scenario(store):
        order = []

        async def work(name):
            async with store.lock("job", timeout=20):
                order.append(name)
                await asyncio.sleep(0)
                order.append(name)

        await asyncio.gather(*(work(n) for n in range(5)))
        return order

    order = run(daemon, scenario)

    assert order[::2] == order[1::2]
    assert sorted(order[::2]) == list(range(5))


def test_content_and_transactions_go_through_threads(daemon, tmp_path):
    large = os.urandom(3_000_000)

    async def scenario(store):
        await store.artifacts.put("t/w/a", large)
        await store.artifacts.move("t/w/a", "cold")

        def both(t):
            t.namespace("a")["k"] = 1
            t.namespace("b")["k"] = 2

        await store.transact(both)
        listed = [(a.name, a.tier) for a in await store.artifacts.list()]
        return await store.artifacts.get("t/w/a"), listed, await store.namespaces()

    assert run(daemon, scenario) == (large, [("t/w/a", "cold")], ["a", "b"])
