"""Giving back to a null pool: closed if nobody waits, else made fit and handed on."""

import threading
from contextlib import suppress

import psycopg
import pytest

pytestmark = pytest.mark.anyio

IDLE = psycopg.pq.TransactionStatus.IDLE


@pytest.fixture
def begin(do):
    """`await begin(conn)` leaves a transaction open."""

    async def begin(conn):
        await do(conn.execute, "select 1")
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS

    return begin


def ask(conn):
    """Leave a query unanswered."""
    conn.pgconn.send_query(b"select 1")
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE


# Nobody waits


async def test_what_comes_back_is_closed(open_pool, do):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await do(pool.putconn, conn)
    assert conn.closed
    assert conn._pool is None
    assert pool.get_stats()["pool_size"] == 0


async def test_what_is_closed_anyway_is_not_cleaned(open_pool, do, callback, begin, log):
    calls = []
    pool = await open_pool(reset=callback(calls.append), max_lifetime=0.0)
    conn = await do(pool.getconn)
    await begin(conn)
    await do(pool.putconn, conn)
    busy = await do(pool.getconn)
    ask(busy)
    await do(pool.putconn, busy)
    assert conn.closed
    assert busy.closed
    assert calls == []
    assert log.warnings() == []


async def test_a_return_ends_in_its_caller(open_pool, do, callback):
    pool = await open_pool(reset=callback(lambda conn: None))
    conn = await do(pool.getconn)
    await do(pool.putconn, conn)
    # No worker has to run for that.
    assert conn.closed
    assert pool.get_stats()["pool_size"] == 0


@pytest.mark.parametrize("end", ["broken", "closed"])
async def test_a_broken_connection_frees_its_place(
    open_pool, do, break_connection, network, log, end, eventually
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    if end == "broken":
        await break_connection(conn)
        await do(pool.putconn, conn)
    else:
        # For real: a pool that takes note of close() is passed over.
        await do(super(type(conn), conn).close)
        await do(pool.putconn, conn)
    assert log.warnings() == []
    # Who was told that its session has ended may be just freeing it.
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    assert pool.get_stats()["returns_bad"] == 1
    assert len(network.attempts) == 1
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


async def test_what_its_borrower_closed_may_be_given_back(open_pool, do, entered):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await do(conn.close)
    assert conn.closed
    await do(pool.putconn, conn)
    async with entered(pool.connection(timeout=1.0)) as conn:
        await do(conn.close)
    assert pool.get_stats()["pool_size"] == 0
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


async def test_a_second_return_is_refused(open_pool, do):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await do(pool.putconn, conn)
    text = "^can't return connection to pool 'p', it doesn't come from any pool: <"
    with pytest.raises(ValueError, match=text):
        await do(pool.putconn, conn)
    assert pool.get_stats()["pool_size"] == 0


async def test_of_two_returns_at_once_one_counts(kind, open_pool, network, do, spawn, eventually):
    closing, go_on = [], threading.Event()

    class Slow(network.connection_class):
        def close(self):
            closing.append(self)
            return self.close_slowly() if kind == "tasks" else self.close_here()

        def close_here(self):
            go_on.wait(5.0)
            super().close()

        async def close_slowly(self):
            await eventually(go_on.is_set)
            await super().close()

    pool = await open_pool(max_size=2, connection_class=Slow)
    conn, other = await do(pool.getconn), await do(pool.getconn)
    first = spawn(pool.putconn, conn)
    await eventually(lambda: closing)
    second = spawn(pool.putconn, conn)
    with suppress(AssertionError):
        await eventually(lambda: second.done, timeout=0.1)
    go_on.set()
    await first.result()
    with suppress(ValueError):
        await second.result()
    assert pool.get_stats()["pool_size"] == 1
    await do(pool.putconn, other)
    assert pool.get_stats()["pool_size"] == 0


async def test_the_connection_of_another_pool_is_refused(open_pool, do):
    pool, other = await open_pool(), await open_pool(name="other")
    conn = await do(other.getconn)
    text = "^can't return connection to pool 'p', it comes from pool 'other': <"
    with pytest.raises(ValueError, match=text):
        await do(pool.putconn, conn)
    assert not conn.closed
    await do(other.putconn, conn)


async def test_those_who_gave_up_are_nobody(impl, open_pool, do, spawn):
    pool = await open_pool()
    conn = await do(pool.getconn)
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.05).result()
    await do(pool.putconn, conn)
    assert conn.closed
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["requests_waiting"]) == (0, 0)


# Somebody waits


async def test_a_connection_is_handed_on_instead_of_closed(
    open_pool, do, waiter, network, pid, works
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    session = pid(conn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    again = await call.result()
    assert pid(again) == session
    assert again._pool is pool
    assert await works(again)
    assert len(network.attempts) == 1
    await do(pool.putconn, again)
    assert again.closed


async def test_what_is_handed_on_is_rolled_back(open_pool, do, waiter, begin, log):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await begin(conn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    again = await call.result()
    assert again is conn
    assert again.info.transaction_status == IDLE
    (warning,) = log.warnings()
    assert warning.startswith("rolling back returned connection: <")
    await do(pool.putconn, again)


async def test_what_is_handed_on_is_reset_and_checked_but_not_configured_again(
    open_pool, do, waiter, begin, callback
):
    calls = []

    def note(name):
        return callback(lambda conn: calls.append((name, conn, conn.info.transaction_status)))

    pool = await open_pool(configure=note("configure"), check=note("check"), reset=note("reset"))
    conn = await do(pool.getconn)
    await begin(conn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    assert await call.result() is conn
    assert calls == [
        ("configure", conn, IDLE),
        ("check", conn, IDLE),
        ("reset", conn, IDLE),
        ("check", conn, IDLE),
    ]
    await do(pool.putconn, conn)
    assert len(calls) == 4


async def test_a_broken_connection_is_replaced_for_who_waits(
    open_pool, do, waiter, network, break_connection, works, log
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    again = await call.result()
    assert again is not conn
    assert await works(again)
    (warning,) = log.warnings()
    assert warning.startswith("discarding closed connection: <")
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["pool_size"]) == (1, 1)
    assert len(network.attempts) == 2
    await do(pool.putconn, again)


async def test_a_busy_connection_is_closed_and_replaced_for_who_waits(
    open_pool, do, waiter, works, log
):
    pool = await open_pool()
    conn = await do(pool.getconn)
    ask(conn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    again = await call.result()
    assert again is not conn
    assert conn.closed
    assert await works(again)
    assert [text.split(":")[0] for text in log.warnings()] == [
        "closing returned connection",
        "discarding closed connection",
    ]
    assert pool.get_stats()["returns_bad"] == 1
    await do(pool.putconn, again)


async def test_a_connection_whose_rollback_fails_is_replaced_for_who_waits(
    kind, open_pool, do, waiter, network, begin, works, log
):
    failing = []

    class Stubborn(network.connection_class):
        def rollback(self):
            if self in failing:
                raise LookupError("no way back")
            return super().rollback()

    pool = await open_pool(connection_class=Stubborn)
    conn = await do(pool.getconn)
    failing.append(conn)
    await begin(conn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    again = await call.result()
    assert again is not conn
    assert conn.closed
    assert await works(again)
    assert [text.split(":")[0] for text in log.warnings()] == [
        "rolling back returned connection",
        "rollback failed",
        "discarding closed connection",
    ]
    assert "rollback failed: LookupError: no way back. Discarding connection <" in "".join(
        log.warnings()
    )
    await do(pool.putconn, again)


@pytest.mark.parametrize("fault", ["raises", "leaves a transaction"])
async def test_a_connection_whose_reset_fails_is_replaced_for_who_waits(
    open_pool, do, waiter, callback, works, log, fault
):
    def reset(conn):
        if fault == "raises":
            raise LookupError("not to be cleaned")
        return conn.execute("select 1")

    pool = await open_pool(reset=callback(reset))
    conn = await do(pool.getconn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    again = await call.result()
    assert again is not conn
    assert conn.closed
    assert await works(again)
    assert [text.split(":")[0] for text in log.warnings()] == [
        "error resetting connection",
        "discarding closed connection",
    ]
    assert pool.get_stats()["returns_bad"] == 1
    await do(pool.putconn, again)


@pytest.mark.parametrize("age", ["expired", "drained"])
async def test_a_connection_too_old_is_replaced_for_who_waits(
    open_pool, do, waiter, works, log, age
):
    pool = await open_pool(max_lifetime=0.0 if age == "expired" else 100.0)
    conn = await do(pool.getconn)
    call = await waiter(pool)
    if age == "drained":
        await do(pool.drain)
    pool.max_lifetime = 100.0
    await do(pool.putconn, conn)
    again = await call.result()
    assert again is not conn
    assert conn.closed
    assert await works(again)
    assert "discarding expired connection" in log.texts()
    assert log.warnings() == []
    assert pool.get_stats().get("returns_bad", 0) == 0
    await do(pool.putconn, again)


async def test_a_replacement_that_comes_too_late_is_closed(
    impl, open_pool, do, spawn, waiter, network, break_connection, eventually
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool, timeout=0.2)
    network.hold()
    await do(pool.putconn, conn)
    await eventually(lambda: network.in_flight == 1)
    with pytest.raises(impl.PoolTimeout):
        await call.result()
    network.release()
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    assert pool.get_stats()["pool_available"] == 0
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


async def test_a_replacement_is_attempted_until_it_succeeds(
    open_pool, do, waiter, network, break_connection, eventually, works, quick_backoff, log
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool)
    network.down()
    await do(pool.putconn, conn)
    await eventually(lambda: len(network.attempts) >= 3)
    network.up()
    again = await call.result()
    assert await works(again)
    assert "error connecting in 'p': the network is down" in log.warnings()
    await do(pool.putconn, again)


async def test_no_client_pays_for_another_ones_replacement(
    impl, open_pool, do, waiter, network, break_connection, eventually
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool)
    network.hold()
    # It does not wait for the connect.
    await do(pool.putconn, conn)
    await eventually(lambda: network.in_flight == 1)
    network.release()
    await do(pool.putconn, await call.result())
