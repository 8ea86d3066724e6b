"""Making connections: where the parameters come from, failure, back-off, giving up, expiry."""

import asyncio
import itertools
import time
from functools import partial

import psycopg
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


def in_form(form, function):
    """Return *function* as one, as a coroutine function, or as what returns an awaitable."""

    async def coroutine_function(*args):
        await asyncio.sleep(0)
        return function(*args)

    return {
        "function": function,
        "coroutine function": coroutine_function,
        "partial": partial(coroutine_function),
        "lambda": lambda *args: coroutine_function(*args),
    }[form]


FORMS = pytest.mark.parametrize("form", ["function", "coroutine function", "partial", "lambda"])


async def replace_one(pool):
    """Return a closed connection, so that the pool makes one more attempt to connect."""
    conn = await pool.getconn(timeout=5.0)
    await conn.close()
    await pool.putconn(conn)
    await pool.wait(timeout=5.0)


# Parameters


async def test_connect_is_called_with_conninfo_and_kwargs_and_nothing_else(open_pool, network, dsn):
    await open_pool(connection_class=network.connection_class, kwargs={"autocommit": True})
    (_, args, kwargs), *more = network.attempts
    assert (args, kwargs, more) == ((dsn,), {"autocommit": True}, [])


async def test_conninfo_none_is_an_empty_string(open_pool, network, dsn):
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    await open_pool(None, connection_class=network.connection_class, kwargs=parts)
    (_, args, kwargs), *_ = network.attempts
    assert (args, kwargs) == (("",), parts)


async def test_kwargs_reach_the_connection(open_pool):
    async with (await open_pool(kwargs={"autocommit": True})).connection() as conn:
        assert conn.autocommit is True


@FORMS
async def test_a_conninfo_function_is_called_for_each_connection(open_pool, dsn, form):
    calls = []

    def conninfo():
        calls.append(None)
        return dsn

    pool = await open_pool(in_form(form, conninfo), min_size=2)
    assert len(calls) == 2
    await replace_one(pool)
    assert len(calls) == 3


@FORMS
async def test_a_kwargs_function_is_called_for_each_connection(open_pool, network, form):
    calls = []

    def kwargs():
        calls.append(None)
        return {"application_name": f"call {len(calls)}"}

    pool = await open_pool(connection_class=network.connection_class, kwargs=in_form(form, kwargs))
    await replace_one(pool)
    assert [kwargs["application_name"] for _, _, kwargs in network.attempts] == [
        "call 1",
        "call 2",
    ]


async def test_kwargs_changed_in_place_count_from_the_next_connection_on(open_pool, network):
    kwargs = {}
    pool = await open_pool(connection_class=network.connection_class, kwargs=kwargs)
    kwargs["autocommit"] = True
    await replace_one(pool)
    assert [kwargs for _, _, kwargs in network.attempts] == [{}, {"autocommit": True}]


async def test_kwargs_and_conninfo_can_be_assigned(new_pool, network, dsn):
    pool = new_pool("host=nowhere", connection_class=network.connection_class)
    pool.conninfo = dsn
    pool.kwargs = {"autocommit": True}
    await pool.open(wait=True, timeout=5.0)
    assert [(args, kwargs) for _, args, kwargs in network.attempts] == [
        ((dsn,), {"autocommit": True})
    ]


async def test_connect_is_looked_up_for_each_connection(open_pool, network, monkeypatch):
    pool = await open_pool(connection_class=network.connection_class)
    calls = []
    original = network.connection_class.connect

    async def connect(*args, **kwargs):
        calls.append(args)
        return await original(*args, **kwargs)

    monkeypatch.setattr(network.connection_class, "connect", connect)
    await replace_one(pool)
    assert len(calls) == 1


async def test_connections_are_of_the_connection_class(open_pool, network):
    async with (await open_pool(connection_class=network.connection_class)).connection() as conn:
        assert type(conn) is network.connection_class


async def test_an_overridden_connect_method_makes_every_connection(impl, open_pool):
    calls = []

    class TokenPool(impl.AsyncConnectionPool):
        async def _connect(self, timeout=None):
            calls.append(timeout)
            return await super()._connect(timeout=timeout)

    pool = await open_pool(cls=TokenPool, min_size=2)
    assert len(calls) == 2
    await replace_one(pool)
    assert len(calls) == 3


@FORMS
async def test_the_resolved_parameters_can_be_asked_for(new_pool, dsn, form):
    parameters = {"autocommit": True}
    pool = new_pool(in_form(form, lambda: dsn), kwargs=in_form(form, lambda: parameters))
    assert await pool._resolve_conninfo() == dsn
    assert await pool._resolve_kwargs() == parameters
    pool = new_pool(None)
    assert (await pool._resolve_conninfo(), await pool._resolve_kwargs()) == ("", {})


# Failure and back-off


async def test_a_failed_connect_is_tried_again_until_it_succeeds(new_pool, network, eventually):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: len(network.attempts) >= 3)
    network.up()
    await pool.wait(timeout=5.0)
    stats = pool.get_stats()
    assert stats["connections_errors"] == len(network.attempts) - 1
    assert stats["pool_size"] == 1


async def test_a_request_waits_for_the_server_to_come_back(new_pool, network, spawn, eventually):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    call = spawn(pool.getconn(timeout=5.0))
    await eventually(lambda: len(network.attempts) >= 2)
    network.up()
    await pool.putconn(await call.result())


async def test_the_delay_between_attempts_doubles(new_pool, network, eventually):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: len(network.attempts) >= 4)
    times = [when for when, _, _ in network.attempts]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # The delays are 20, 40 and 80 ms, each at most a tenth shorter. A busy machine adds to them.
    assert gaps[0] >= 0.018
    assert gaps[1] >= 0.036
    assert gaps[2] >= 0.072


async def test_conninfo_and_kwargs_are_resolved_for_each_attempt(
    new_pool, network, eventually, dsn
):
    calls = []

    def conninfo():
        calls.append(None)
        if len(calls) < 3:
            raise RuntimeError("no token")
        return dsn

    pool = new_pool(conninfo, connection_class=network.connection_class)
    await pool.open(wait=True, timeout=5.0)
    stats = pool.get_stats()
    assert len(calls) == 3
    assert len(network.attempts) == 1
    assert (stats["connections_num"], stats.get("connections_errors", 0)) == (3, 0)


async def test_a_failure_of_any_exception_class_is_tried_again(new_pool, network, eventually):
    network.down(TimeoutError())
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: len(network.attempts) >= 2)
    network.up()
    await pool.wait(timeout=5.0)


# Giving up


@FORMS
async def test_giving_up_tells_the_callback_and_frees_the_place(
    new_pool, network, eventually, form
):
    network.down()
    told = []

    def reconnect_failed(pool):
        told.append((pool, asyncio.current_task()))

    pool = new_pool(
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=in_form(form, reconnect_failed),
    )
    start = time.monotonic()
    await pool.open()
    await eventually(lambda: told)
    assert time.monotonic() - start >= 0.05
    assert told[0][0] is pool
    assert told[0][1] is not asyncio.current_task()
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    assert pool.closed is False


async def test_a_pool_that_gave_up_makes_no_attempt_unasked(new_pool, network, eventually):
    network.down()
    told = []

    def no_token():
        raise RuntimeError("no token")

    options = {"reconnect_timeout": 0.05, "reconnect_failed": told.append}
    pool = new_pool(connection_class=network.connection_class, **options)
    await pool.open()
    await eventually(lambda: told == [pool])
    attempts = len(network.attempts)
    # That this one gives up shows that time for the other has passed too.
    clock = new_pool(no_token, **options)
    await clock.open()
    await eventually(lambda: clock in told)
    assert told == [pool, clock]
    assert len(network.attempts) == attempts


async def test_a_request_after_giving_up_connects_again(new_pool, network, eventually, works):
    network.down()
    told = []
    pool = new_pool(
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=told.append,
    )
    await pool.open()
    await eventually(lambda: told)
    network.up()
    async with pool.connection(timeout=5.0) as conn:
        assert await works(conn)


async def test_a_request_after_giving_up_has_min_size_restored_too(new_pool, network, eventually):
    network.down()
    told = []
    pool = new_pool(
        min_size=3,
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=told.append,
    )
    await pool.open()
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    network.up()
    await pool.putconn(await pool.getconn(timeout=5.0))
    await eventually(lambda: pool.get_stats()["pool_available"] == 3)


async def test_one_who_waits_after_giving_up_is_served_by_the_next_attempts(
    new_pool, network, spawn, eventually
):
    network.down()
    told = []
    pool = new_pool(
        connection_class=network.connection_class,
        reconnect_timeout=1.0,
        reconnect_failed=told.append,
    )
    await pool.open()
    call = spawn(pool.getconn(timeout=5.0))
    await eventually(lambda: len(network.attempts) >= 3)
    network.up()
    await pool.putconn(await call.result())
    assert told == []


@FORMS
async def test_a_callback_that_raises_stops_nothing(
    new_pool, network, eventually, log, works, form
):
    network.down()

    def reconnect_failed(pool):
        raise RuntimeError("the pager is off")

    pool = new_pool(
        connection_class=network.connection_class,
        reconnect_timeout=0.0,
        reconnect_failed=in_form(form, reconnect_failed),
    )
    await pool.open()
    await eventually(lambda: any("the pager is off" in text for text in log.warnings()))
    network.up()
    async with pool.connection(timeout=5.0) as conn:
        assert await works(conn)


@FORMS
async def test_reconnect_failed_can_be_called(new_pool, form):
    told = []
    pool = new_pool(reconnect_failed=in_form(form, told.append))
    await pool.reconnect_failed()
    assert told == [pool]
    await new_pool().reconnect_failed()


async def test_an_overridden_reconnect_failed_is_called(impl, new_pool, network, eventually):
    told = []

    class Telling(impl.AsyncConnectionPool):
        async def reconnect_failed(self):
            told.append(self)

    network.down()
    pool = new_pool(cls=Telling, connection_class=network.connection_class, reconnect_timeout=0.05)
    await pool.open()
    await eventually(lambda: told == [pool])


# Expiry


async def test_a_connection_expires_a_little_before_max_lifetime(open_pool):
    before = time.monotonic()
    pool = await open_pool(min_size=8, max_lifetime=1000.0)
    conns = list(pool._pool)
    lifetimes = {conn._expire_at - conn._created_at for conn in conns}
    assert all(950.0 <= lifetime <= 1000.0 for lifetime in lifetimes)
    assert len(lifetimes) > 1
    assert all(before <= conn._created_at <= time.monotonic() for conn in conns)


async def test_max_lifetime_is_read_for_each_connection(open_pool):
    pool = await open_pool(max_lifetime=1000.0)
    pool.max_lifetime = 10.0
    await replace_one(pool)
    (conn,) = pool._pool
    assert 9.5 <= conn._expire_at - conn._created_at <= 10.0
