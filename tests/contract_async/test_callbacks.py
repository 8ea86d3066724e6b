"""configure, check and reset: when they are called, with what, and what their failure leads to."""

import asyncio
from contextlib import suppress

import psycopg
import pytest
from psycopg.pq import TransactionStatus

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


class Seen(list):
    """The connections that a callback was given; `note` is that callback."""

    async def note(self, conn):
        self.append(conn)


async def fail(conn):
    raise RuntimeError("refused")


async def leave_a_transaction(conn):
    await conn.execute("select 1")


async def leave_a_failed_transaction(conn):
    with suppress(psycopg.errors.UndefinedTable):
        await conn.execute("select * from nowhere")


async def close(conn):
    await conn.close()


def first_time(misbehave):
    """Make a callback that calls *misbehave* the first time; its `seen` are the connections."""

    async def callback(conn):
        callback.seen.append(conn)
        if len(callback.seen) == 1:
            await misbehave(conn)

    callback.seen = []
    return callback


# configure


async def test_configure_is_called_once_for_each_new_connection(open_pool):
    seen = Seen()
    pool = await open_pool(min_size=2, configure=seen.note)
    for _ in range(3):
        async with pool.connection():
            pass
    assert len(seen) == 2
    assert set(seen) == set(pool._pool)


async def test_configure_is_called_for_a_replacement(open_pool):
    seen = Seen()
    pool = await open_pool(configure=seen.note)
    conn = await pool.getconn()
    await conn.close()
    await pool.putconn(conn)
    async with pool.connection(timeout=5.0) as again:
        assert seen == [conn, again]


async def test_configure_sees_the_pool_on_the_connection(open_pool):
    seen = []

    async def configure(conn):
        seen.append(conn._pool)

    pool = await open_pool(configure=configure)
    assert seen == [pool]


async def test_configure_may_use_the_connection_as_a_context(open_pool):
    async def configure(conn):
        async with conn:
            await conn.execute("set application_name = 'configured'")

    async with (await open_pool(configure=configure)).connection() as conn:
        cursor = await conn.execute("show application_name")
        assert await cursor.fetchone() == ("configured",)


async def test_configure_may_return_what_it_likes(open_pool, works):
    async def configure(conn):
        return False

    async with (await open_pool(configure=configure)).connection() as conn:
        assert await works(conn)


@pytest.mark.parametrize(
    "misbehave", [fail, leave_a_transaction, leave_a_failed_transaction, close]
)
async def test_a_connection_that_configure_spoiled_is_never_lent(open_pool, misbehave):
    configure = first_time(misbehave)
    pool = await open_pool(configure=configure)
    spoiled, well = configure.seen
    async with pool.connection() as conn:
        assert conn is well
    await spoiled.close()
    stats = pool.get_stats()
    assert (stats["connections_num"], stats.get("connections_errors", 0)) == (2, 0)


async def test_configure_may_ask_the_pool(open_pool):
    seen = []

    async def configure(conn):
        seen.append(conn._pool.get_stats()["pool_size"])

    pool = await open_pool(configure=configure)
    assert seen == [pool.get_stats()["pool_size"]]


# check


async def test_check_is_called_in_the_borrowers_task_at_each_request(open_pool):
    seen = []

    async def check(conn):
        seen.append((conn, conn._pool, asyncio.current_task()))

    pool = await open_pool(check=check)
    for _ in range(2):
        async with pool.connection() as conn:
            pass
    assert seen == [(conn, pool, asyncio.current_task())] * 2


async def test_check_is_called_for_one_who_waited_too(open_pool, spawn, waiting):
    seen = Seen()
    pool = await open_pool(check=seen.note)
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await pool.putconn(conn)
    await pool.putconn(await call.result())
    assert len(seen) == 2


async def test_what_fails_the_check_but_is_well_stays_in_the_pool(open_pool, pid):
    check = first_time(fail)
    pool = await open_pool(min_size=2, check=check)
    sessions = {pid(conn) for conn in pool._pool}
    async with pool.connection(timeout=5.0) as conn:
        assert conn is check.seen[1]
        assert conn is not check.seen[0]
    assert {pid(conn) for conn in pool._pool} == sessions
    assert pool.get_stats().get("connections_lost", 0) == 0


async def test_what_fails_the_check_goes_to_the_end_of_the_line(open_pool):
    check = first_time(fail)
    pool = await open_pool(min_size=3, check=check)
    order = list(pool._pool)
    async with pool.connection(timeout=5.0) as conn:
        assert conn is order[1]
        assert list(pool._pool) == [order[2], order[0]]


async def test_a_transaction_left_by_a_failed_check_is_rolled_back(open_pool):
    async def misbehave(conn):
        await conn.execute("select 1")
        raise RuntimeError("refused")

    pool = await open_pool(min_size=2, check=first_time(misbehave))
    async with pool.connection(timeout=5.0):
        (other,) = pool._pool
        assert other.info.transaction_status == TransactionStatus.IDLE


async def test_what_the_check_found_broken_is_replaced(open_pool, eventually):
    async def misbehave(conn):
        await conn.close()
        raise RuntimeError("refused")

    check = first_time(misbehave)
    pool = await open_pool(min_size=2, check=check)
    async with pool.connection(timeout=5.0) as conn:
        assert conn is not check.seen[0]
    await eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert check.seen[0] not in list(pool._pool)
    stats = pool.get_stats()
    assert (stats["connections_lost"], stats["pool_size"]) == (1, 2)


async def test_a_dead_idle_connection_is_not_lent_when_checked(
    impl, open_pool, end_session, pid, works
):
    pool = await open_pool(min_size=2, check=impl.AsyncConnectionPool.check_connection)
    dead = next(iter(pool._pool))
    session = pid(dead)
    end_session(dead)
    async with pool.connection(timeout=5.0) as conn:
        assert pid(conn) != session
        assert await works(conn)
    assert pool.get_stats()["connections_lost"] == 1


async def test_a_request_whose_checks_all_fail_ends_by_its_timeout(impl, open_pool):
    pool = await open_pool(check=fail)
    with pytest.raises(impl.PoolTimeout) as failure:
        await pool.getconn(timeout=0.1)
    assert str(failure.value).startswith("couldn't get a connection after 0.10 sec")
    assert pool.get_stats()["pool_available"] == 1


async def test_an_interrupted_check_loses_no_connection(open_pool, works):
    class Interrupted(BaseException):
        pass

    async def interrupt(conn):
        raise Interrupted

    pool = await open_pool(check=first_time(interrupt))
    with pytest.raises(Interrupted):
        await pool.getconn(timeout=1.0)
    async with pool.connection(timeout=1.0) as conn:
        assert await works(conn)


# reset


async def test_reset_is_called_once_for_each_return_with_an_idle_connection(open_pool, eventually):
    seen = []

    async def reset(conn):
        seen.append((conn, conn._pool, conn.info.transaction_status))

    pool = await open_pool(reset=reset)
    conn = await pool.getconn()
    assert seen == []
    await conn.execute("select 1")
    await pool.putconn(conn)
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert seen == [(conn, pool, TransactionStatus.IDLE)]
    assert conn._pool is None


async def test_reset_comes_before_the_next_borrower(open_pool, spawn, waiting):
    async def reset(conn):
        await conn.set_autocommit(False)

    pool = await open_pool(reset=reset)
    conn = await pool.getconn()
    await conn.set_autocommit(True)
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await pool.putconn(conn)
    received = await call.result()
    assert received is conn
    assert received.autocommit is False
    await pool.putconn(received)


async def test_reset_comes_after_a_block(open_pool, eventually):
    seen = Seen()
    pool = await open_pool(reset=seen.note)
    async with pool.connection() as conn:
        await conn.execute("select 1")
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert seen == [conn]


@pytest.mark.parametrize(
    "misbehave", [fail, leave_a_transaction, leave_a_failed_transaction, close]
)
async def test_a_connection_that_reset_spoiled_is_closed_and_replaced(open_pool, misbehave, pid):
    reset = first_time(misbehave)
    pool = await open_pool(reset=reset)
    conn = await pool.getconn()
    session = pid(conn)
    await pool.putconn(conn)
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert conn.closed
    assert reset.seen[0] is conn
    assert pool.get_stats()["returns_bad"] == 1


async def test_reset_is_not_called_on_a_broken_connection(open_pool, break_connection, works):
    seen = Seen()
    pool = await open_pool(reset=seen.note)
    conn = await pool.getconn()
    await break_connection(conn)
    await pool.putconn(conn)
    async with pool.connection(timeout=5.0) as again:
        assert await works(again)
    assert conn not in seen


async def test_a_connection_returned_to_a_closed_pool_is_closed_though_reset_is_set(open_pool):
    pool = await open_pool(reset=Seen().note)
    conn = await pool.getconn()
    await pool.close()
    await pool.putconn(conn)
    assert conn.closed


async def test_reset_may_ask_the_pool(open_pool, eventually):
    seen = []

    async def reset(conn):
        seen.append(conn._pool.get_stats()["pool_size"])

    pool = await open_pool(reset=reset)
    async with pool.connection():
        pass
    await eventually(lambda: seen == [1])
