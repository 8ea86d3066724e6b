"""What is logged on "psycopg.pool": each line, its level, and how many warnings."""

import logging
import re

import psycopg
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]

INFO = "INFO"
WARNING = "WARNING"


async def test_a_request_and_its_return_are_three_lines(open_pool, log):
    pool = await open_pool()
    log.clear()
    await pool.putconn(await pool.getconn())
    assert log.lines(logging.INFO) == [
        (INFO, "connection requested from 'p'"),
        (INFO, "connection given by 'p'"),
        (INFO, "returning connection to 'p'"),
    ]


async def test_a_block_is_the_same_three_lines(open_pool, log):
    pool = await open_pool()
    log.clear()
    async with pool.connection():
        pass
    assert log.texts(logging.INFO) == [
        "connection requested from 'p'",
        "connection given by 'p'",
        "returning connection to 'p'",
    ]


async def test_a_renamed_pool_logs_its_new_name(open_pool, log):
    pool = await open_pool()
    pool.name = "reports"
    log.clear()
    await pool.putconn(await pool.getconn())
    assert log.texts(logging.INFO)[0] == "connection requested from 'reports'"


async def test_a_level_above_info_silences_the_hot_path(open_pool, log, caplog):
    pool = await open_pool()
    log.clear()
    with caplog.at_level(logging.WARNING, logger="psycopg.pool"):
        await pool.putconn(await pool.getconn())
    assert log.lines() == []


async def test_a_request_that_waited_is_logged_like_any_other(open_pool, spawn, waiting, log):
    pool = await open_pool()
    conn = await pool.getconn()
    log.clear()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    assert log.texts(logging.INFO) == ["connection requested from 'p'"]
    await pool.putconn(conn)
    await pool.putconn(await call.result())
    assert log.texts(logging.INFO)[1:] == [
        "returning connection to 'p'",
        "connection given by 'p'",
        "returning connection to 'p'",
    ]


@pytest.mark.parametrize("state", ["new", "closed"])
async def test_a_refused_request_is_logged_as_requested_only(impl, new_pool, open_pool, log, state):
    pool = new_pool() if state == "new" else await open_pool()
    await pool.close()
    log.clear()
    with pytest.raises(impl.PoolClosed):
        await pool.getconn()
    assert log.lines(logging.INFO) == [(INFO, "connection requested from 'p'")]


async def test_a_return_to_a_closed_pool_is_logged(open_pool, log):
    pool = await open_pool()
    conn = await pool.getconn()
    await pool.close()
    log.clear()
    await pool.putconn(conn)
    assert log.lines(logging.INFO) == [(INFO, "returning connection to 'p'")]


async def test_opening_and_waiting_are_logged(open_pool, log):
    await open_pool(min_size=2)
    lines = log.lines(logging.INFO)
    added = (INFO, "adding new connection to the pool")
    assert lines.count(added) == 2
    assert [line for line in lines if line != added] == [
        (INFO, "waiting for pool 'p' initialization"),
        (INFO, "pool 'p' is ready to use"),
    ]


async def test_waiting_for_a_full_pool_is_not_logged(open_pool, log):
    pool = await open_pool()
    log.clear()
    await pool.wait(timeout=1.0)
    assert log.lines(logging.INFO) == []


async def test_closing_is_logged_once(open_pool, log):
    pool = await open_pool()
    await pool.close()
    await pool.close()
    assert log.lines().count(("DEBUG", "pool 'p' closed")) == 1
    assert log.warnings() == []


async def test_closing_a_new_pool_is_not_logged(new_pool, log):
    await new_pool().close()
    assert log.lines() == []


async def test_growth_is_logged_with_the_new_size(full_pool, log):
    await full_pool(max_size=3)
    assert [line for line in log.lines() if line[1].startswith("growing")] == [
        (INFO, "growing pool 'p' to 2"),
        (INFO, "growing pool 'p' to 3"),
    ]


async def test_filling_and_replacing_are_not_growth(open_pool, log):
    pool = await open_pool(min_size=2)
    conn = await pool.getconn()
    await conn.close()
    await pool.putconn(conn)
    await pool.wait(timeout=5.0)
    await pool.resize(3)
    await pool.wait(timeout=5.0)
    assert not log.has(INFO, "growing")
    assert log.texts().count("adding new connection to the pool") == 4


async def test_shrinking_is_logged_with_its_reason(full_pool, log, eventually):
    await full_pool(max_size=2, max_idle=0.05)
    await eventually(lambda: log.has(INFO, "shrinking"))
    assert [line for line in log.lines() if line[1].startswith("shrinking")] == [
        (INFO, "shrinking pool 'p' to 1 because 2 unused connections in the last 0.05 sec"),
    ]


async def test_a_resize_is_logged(open_pool, log):
    pool = await open_pool(max_size=2)
    log.clear()
    await pool.resize(1, 3)
    await pool.resize(1, 3)
    await pool.resize(1)
    assert log.lines(logging.INFO) == [
        (INFO, "resizing 'p' to min_size=1 max_size=3"),
        (INFO, "resizing 'p' to min_size=1 max_size=3"),
        (INFO, "resizing 'p' to min_size=1 max_size=1"),
    ]


async def test_a_refused_resize_is_not_logged(open_pool, log):
    pool = await open_pool()
    log.clear()
    with pytest.raises(ValueError, match="max_size"):
        await pool.resize(2, 1)
    assert log.lines() == []


# Warnings on return


async def test_an_open_transaction_is_one_warning(open_pool, log):
    pool = await open_pool()
    conn = await pool.getconn()
    await conn.execute("select 1")
    shown = str(conn)
    assert "INTRANS" in shown
    await pool.putconn(conn)
    assert log.warnings() == [f"rolling back returned connection: {shown}"]


async def test_a_failed_transaction_is_one_warning(open_pool, log):
    pool = await open_pool()
    conn = await pool.getconn()
    with pytest.raises(psycopg.errors.UndefinedTable):
        await conn.execute("select * from nowhere")
    shown = str(conn)
    assert "INERROR" in shown
    await pool.putconn(conn)
    assert log.warnings() == [f"rolling back returned connection: {shown}"]


async def test_one_in_the_middle_of_a_query_is_two_warnings(open_pool, log):
    pool = await open_pool()
    conn = await pool.getconn()
    rows = conn.cursor().stream("select generate_series(1, 10)")
    await anext(rows)
    shown = str(conn)
    assert "ACTIVE" in shown
    await pool.putconn(conn)
    assert log.warnings() == [
        f"closing returned connection: {shown}",
        f"discarding closed connection: {conn}",
    ]
    await rows.aclose()


async def test_a_failed_rollback_is_three_warnings(open_pool, end_session, log):
    pool = await open_pool()
    conn = await pool.getconn()
    await conn.execute("select 1")
    shown = str(conn)
    end_session(conn)
    await pool.putconn(conn)
    rolling, failed, discarding = log.warnings()
    assert rolling == f"rolling back returned connection: {shown}"
    assert re.match("rollback failed: (AdminShutdown|OperationalError): ", failed)
    assert failed.endswith(f". Discarding connection {conn}")
    assert discarding == f"discarding closed connection: {conn}"


async def test_a_broken_one_is_one_warning(open_pool, break_connection, log):
    pool = await open_pool()
    conn = await pool.getconn()
    await break_connection(conn)
    await pool.putconn(conn)
    assert log.warnings() == [f"discarding closed connection: {conn}"]
    assert "[BAD]" in log.warnings()[0]


async def test_an_expired_one_is_no_warning(open_pool, log):
    pool = await open_pool(max_lifetime=0.0)
    conn = await pool.getconn()
    log.clear()
    await pool.putconn(conn)
    assert log.has(INFO, "discarding expired connection")
    assert log.warnings() == []


async def test_a_drained_one_is_no_warning(open_pool, log):
    pool = await open_pool()
    conn = await pool.getconn()
    await pool.drain()
    log.clear()
    await pool.putconn(conn)
    assert log.has(INFO, "discarding expired connection")
    assert log.warnings() == []


# Warnings of upkeep and callbacks


async def test_check_warns_of_what_it_found_broken(open_pool, end_session, log):
    pool = await open_pool(min_size=2)
    dead = next(iter(pool._pool))
    end_session(dead)
    log.clear()
    await pool.check()
    (warning,) = log.warnings()
    assert warning.startswith("discarding broken connection: <")
    assert "[BAD]" in warning


async def test_check_says_what_has_expired(open_pool, log):
    pool = await open_pool(max_lifetime=0.0)
    log.clear()
    await pool.check()
    assert log.has(INFO, "discarding expired connection <")
    assert log.warnings() == []


async def test_check_is_silent_when_all_is_well(full_pool, log):
    pool = await full_pool(max_size=2)
    log.clear()
    await pool.check()
    assert log.lines(logging.INFO) == []


async def test_a_failed_check_callback_is_no_warning(open_pool, log):
    answers = [RuntimeError("refused")]

    async def check(conn):
        if answers:
            raise answers.pop()

    pool = await open_pool(min_size=2, check=check)
    log.clear()
    conn = await pool.getconn(timeout=5.0)
    assert log.lines(logging.INFO) == [
        (INFO, "connection requested from 'p'"),
        (INFO, "connection failed check: refused"),
        (INFO, "connection given by 'p'"),
    ]
    await pool.putconn(conn)


async def test_a_callback_that_found_a_broken_connection_is_no_warning(
    impl, open_pool, end_session, log
):
    pool = await open_pool(min_size=2, check=impl.AsyncConnectionPool.check_connection)
    end_session(next(iter(pool._pool)))
    await pool.putconn(await pool.getconn(timeout=5.0))
    assert log.has(INFO, "connection failed check: ")
    assert log.has(INFO, "not serving connection found broken")
    assert log.warnings() == []


async def test_a_reset_that_raises_is_two_warnings(open_pool, log, eventually):
    async def reset(conn):
        raise RuntimeError("refused")

    pool = await open_pool(reset=reset)
    conn = await pool.getconn()
    await pool.putconn(conn)
    await eventually(lambda: len(log.warnings()) >= 2)
    assert log.warnings() == [
        "error resetting connection: refused",
        f"discarding closed connection: {conn}",
    ]


async def test_a_reset_that_leaves_a_transaction_is_two_warnings(open_pool, log, eventually):
    async def reset(conn):
        await conn.execute("select 1")

    pool = await open_pool(reset=reset)
    conn = await pool.getconn()
    await pool.putconn(conn)
    await eventually(lambda: len(log.warnings()) >= 2)
    status = f"connection left in status INTRANS by reset function {reset}: discarded"
    assert log.warnings() == [
        f"error resetting connection: {status}",
        f"discarding closed connection: {conn}",
    ]


async def test_a_configure_that_leaves_a_transaction_is_a_failed_connect(open_pool, log):
    calls = []

    async def configure(conn):
        calls.append(conn)
        if len(calls) == 1:
            await conn.execute("select 1")

    await open_pool(configure=configure)
    status = f"connection left in status INTRANS by configure function {configure}: discarded"
    assert log.warnings() == [f"error connecting in 'p': {status}"]
    await calls[0].close()


async def test_a_configure_that_raises_is_a_failed_connect(open_pool, log):
    calls = []

    async def configure(conn):
        calls.append(conn)
        if len(calls) == 1:
            raise RuntimeError("refused")

    await open_pool(configure=configure)
    assert log.warnings() == ["error connecting in 'p': refused"]
    await calls[0].close()


# Warnings of connecting


async def test_each_failed_connect_is_a_warning(new_pool, network, log, eventually):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: len(network.attempts) >= 2)
    network.up()
    await pool.wait(timeout=5.0)
    assert log.warnings() == ["error connecting in 'p': the network is down"] * (
        len(network.attempts) - 1
    )


async def test_a_conninfo_function_that_raises_is_a_failed_connect(open_pool, dsn, log):
    answers = [RuntimeError("no token")]

    def conninfo():
        if answers:
            raise answers.pop()
        return dsn

    await open_pool(conninfo)
    assert log.warnings() == ["error connecting in 'p': no token"]


async def test_giving_up_is_a_warning(new_pool, network, log, eventually):
    network.down()
    told = []
    pool = new_pool(
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=told.append,
    )
    await pool.open()
    await eventually(lambda: told)
    first, *attempts, last = log.warnings()
    assert set(attempts) <= {first}
    assert first == "error connecting in 'p': the network is down"
    assert last == "reconnection attempt in pool 'p' failed after 0.05 sec"
