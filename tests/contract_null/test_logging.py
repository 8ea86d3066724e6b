"""What a null pool logs, on "psycopg.pool", level by level."""

import pytest

pytestmark = pytest.mark.anyio

REQUESTED = "connection requested from 'p'"
GIVEN = "connection given by 'p'"
RETURNING = "returning connection to 'p'"
ADDING = "adding new connection to the pool"
WAITING = "waiting for pool 'p' initialization"
READY = "pool 'p' is ready to use"


async def test_a_lending_is_three_lines(open_pool, do, log):
    pool = await open_pool()
    await do(pool.putconn, await do(pool.getconn))
    assert log.lines() == [("INFO", REQUESTED), ("INFO", GIVEN), ("INFO", RETURNING)]


async def test_a_hand_over_is_no_line_of_its_own(open_pool, do, waiter, log):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool)
    log.clear()
    await do(pool.putconn, conn)
    await call.result()
    assert log.lines() == [("INFO", RETURNING), ("INFO", GIVEN)]
    await do(pool.putconn, conn)


async def test_a_refused_return_is_no_line(open_pool, do, log):
    pool = await open_pool()
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        await do(pool.putconn, None)
    assert log.texts() == []


@pytest.mark.parametrize("fault", ["no time", "no place", "not open"])
async def test_a_refused_request_is_one_line(impl, new_pool, do, spawn, log, fault):
    pool = new_pool()
    conn = None
    if fault != "not open":
        await do(pool.open)
        conn = await do(pool.getconn)
    log.clear()
    with pytest.raises((impl.PoolTimeout, impl.PoolClosed)):
        await spawn(pool.getconn, timeout=0 if fault == "no time" else 0.05).result()
    assert log.lines() == [("INFO", REQUESTED)]
    if conn is not None:
        await do(pool.putconn, conn)


async def test_wait_says_when_it_begins_and_ends(open_pool, do, log, eventually):
    pool = await open_pool()
    for _ in range(2):
        log.clear()
        await do(pool.wait, timeout=5.0)
        await eventually(lambda: pool.get_stats()["pool_size"] == 0)
        assert [line for line in log.lines() if line[0] != "DEBUG"] == [
            ("INFO", WAITING),
            ("INFO", ADDING),
            ("INFO", READY),
        ]


async def test_a_wait_that_fails_does_not_say_ready(impl, open_pool, network, spawn, log):
    pool = await open_pool(connection_class=network.connection_class)
    network.down()
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.wait, timeout=0.1).result()
    assert log.texts() == [WAITING, "error connecting in 'p': the network is down"]
    assert log.warnings() == ["error connecting in 'p': the network is down"]


async def test_a_replacement_is_added(open_pool, do, waiter, break_connection, log):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool)
    log.clear()
    await do(pool.putconn, conn)
    again = await call.result()
    lines = [line for line in log.lines() if line[0] != "DEBUG"]
    assert lines[0] == ("INFO", RETURNING)
    assert lines[1][0] == "WARNING"
    assert lines[1][1].startswith("discarding closed connection: <")
    assert lines[2:] == [("INFO", ADDING), ("INFO", GIVEN)]
    await do(pool.putconn, again)


async def test_a_resize_is_one_line_unless_refused(open_pool, do, log):
    pool = await open_pool()
    await do(pool.resize, 0, 3)
    await do(pool.resize, 0)
    with pytest.raises(ValueError, match="min_size"):
        await do(pool.resize, 1, 3)
    assert log.lines() == [
        ("INFO", "resizing 'p' to min_size=0 max_size=3"),
        ("INFO", "resizing 'p' to min_size=0 max_size=0"),
    ]


async def test_closing_is_one_line_for_debugging(open_pool, do, log):
    pool = await open_pool()
    await do(pool.close)
    await do(pool.close)
    assert log.lines().count(("DEBUG", "pool 'p' closed")) == 1
    assert log.texts() == []


async def test_a_check_that_fails_is_for_information(open_pool, do, callback, log):
    seen = []

    def check(conn):
        seen.append(conn)
        if len(seen) == 1:
            raise LookupError("not this one")

    pool = await open_pool(check=callback(check))
    conn = await do(pool.getconn, timeout=5.0)
    assert log.lines() == [
        ("INFO", REQUESTED),
        ("INFO", "connection failed check: not this one"),
        ("INFO", GIVEN),
    ]
    await do(pool.putconn, conn)


async def test_a_check_that_finds_a_connection_broken_is_for_information(
    open_pool, do, callback, end_session, log
):
    seen = []

    def check(conn):
        seen.append(conn)
        if len(seen) == 1:
            end_session(conn)
        return conn.execute("")

    pool = await open_pool(check=callback(check), kwargs={"autocommit": True})
    conn = await do(pool.getconn, timeout=5.0)
    assert "not serving connection found broken" in log.texts()
    assert log.warnings() == []
    await do(pool.putconn, conn)
