"""New, open, closed: what each state allows, and the ways from one to the next."""

import time

import pytest

pytestmark = pytest.mark.anyio

OPENED_BY_THE_CONSTRUCTOR = "^opening the async pool AsyncConnectionPool in the constructor is"


async def borrow_and_return(pool):
    await pool.putconn(await pool.getconn())


async def borrow_for_a_block(pool):
    async with pool.connection():
        pass


async def wait_until_full(pool):
    await pool.wait(timeout=5.0)


async def open_and_wait(pool):
    await pool.open(wait=True, timeout=5.0)


async def enter(pool):
    async with pool:
        pass


# New


@pytest.mark.parametrize("use", [borrow_and_return, borrow_for_a_block, wait_until_full])
async def test_a_new_pool_refuses_to_be_used(impl, new_pool, use):
    with pytest.raises(impl.PoolClosed) as refusal:
        await use(new_pool())
    assert str(refusal.value) == "the pool 'p' is not open yet"


def test_a_new_pool_is_closed(new_pool):
    assert new_pool().closed is True


async def test_closing_a_new_pool_does_not_use_it_up(new_pool):
    pool = new_pool()
    await pool.close()
    await pool.open(wait=True, timeout=5.0)
    assert pool.closed is False


# Opening


async def test_an_open_pool_is_not_closed(new_pool):
    pool = new_pool()
    await pool.open()
    assert pool.closed is False


async def test_opening_an_open_pool_changes_nothing(open_pool):
    pool = await open_pool(min_size=2)
    before = pool.get_stats()
    await pool.open()
    assert pool.get_stats() == before


async def test_opening_an_open_pool_can_wait_until_it_is_full(new_pool):
    pool = new_pool(min_size=2)
    await pool.open()
    await pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["pool_available"] == 2


async def test_the_constructor_opens_when_told_and_warns(new_pool):
    with pytest.warns(RuntimeWarning, match=OPENED_BY_THE_CONSTRUCTOR) as caught:
        pool = new_pool(open=True)
    assert len(caught) == 1
    assert pool.closed is False
    await pool.wait(timeout=5.0)
    await borrow_and_return(pool)


async def test_a_warning_names_the_class(impl, new_pool):
    class Mine(impl.AsyncConnectionPool):
        pass

    with pytest.warns(RuntimeWarning, match="^opening the async pool Mine in the constructor"):
        new_pool(cls=Mine, open=True)


async def test_opening_from_many_tasks_opens_once(new_pool, spawn):
    pool = new_pool(min_size=2)
    for call in [spawn(pool.open()) for _ in range(8)]:
        await call.result()
    await pool.wait(timeout=5.0)
    assert pool.get_stats()["connections_num"] == 2


async def test_opening_does_not_wait_for_connections(new_pool, network):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    assert pool.get_stats()["pool_available"] == 0


# Opening implicitly


@pytest.mark.parametrize(
    "use", [borrow_and_return, borrow_for_a_block, wait_until_full, open_and_wait]
)
async def test_a_pool_opened_implicitly_warns_at_its_first_use_only(new_pool, use):
    pool = new_pool(open=None)
    assert pool.closed is False
    with pytest.warns(RuntimeWarning, match=OPENED_BY_THE_CONSTRUCTOR) as caught:
        await use(pool)
    assert len(caught) == 1
    await use(pool)


async def test_an_explicit_open_does_not_silence_the_warning(new_pool):
    pool = new_pool(open=None)
    await pool.open()
    with pytest.warns(RuntimeWarning, match=OPENED_BY_THE_CONSTRUCTOR):
        await borrow_and_return(pool)


async def test_entering_the_pool_silences_the_warning(new_pool):
    async with new_pool(open=None) as pool:
        await borrow_and_return(pool)


async def test_a_pool_opened_by_hand_never_warns(new_pool):
    pool = new_pool(open=False)
    await pool.open()
    await borrow_and_return(pool)


async def test_upkeep_of_an_implicitly_opened_pool_does_not_warn(new_pool):
    pool = new_pool(open=None)
    pool.get_stats()
    await pool.resize(1, 2)
    await pool.check()
    await pool.drain()
    await pool.close()


# The pool as a context


async def test_a_block_opens_and_closes_the_pool(new_pool):
    pool = new_pool()
    async with pool as entered:
        assert entered is pool
        assert pool.closed is False
    assert pool.closed is True


async def test_an_open_pool_can_be_entered_and_is_closed_by_leaving(open_pool):
    pool = await open_pool()
    async with pool:
        await borrow_and_return(pool)
    assert pool.closed is True


async def test_an_exception_leaves_the_block_and_closes_the_pool(new_pool):
    pool = new_pool()
    with pytest.raises(KeyError):
        async with pool:
            raise KeyError
    assert pool.closed is True


# Waiting until full


async def test_wait_returns_when_every_connection_is_idle(new_pool, network, spawn):
    network.hold()
    pool = new_pool(connection_class=network.connection_class, min_size=3)
    await pool.open()
    call = spawn(pool.wait(timeout=5.0))
    assert not call.done
    network.release()
    await call.result()
    assert pool.get_stats()["pool_available"] == 3


async def test_wait_on_a_full_pool_returns_at_once_and_again(open_pool):
    pool = await open_pool()
    await pool.wait(timeout=0)
    await pool.wait(timeout=0.0)


async def test_wait_on_a_pool_that_may_be_empty_returns_at_once(new_pool):
    pool = new_pool(min_size=0, max_size=1)
    await pool.open()
    await pool.wait(timeout=0.5)


async def test_wait_blocks_while_a_connection_is_lent(open_pool, spawn, log, eventually):
    pool = await open_pool()
    log.clear()
    conn = await pool.getconn()
    call = spawn(pool.wait(timeout=5.0))
    await eventually(lambda: log.has("INFO", "waiting for pool"))
    assert not call.done
    await pool.putconn(conn)
    await call.result()


@pytest.mark.parametrize(("timeout", "shown"), [(0.05, "0.05"), (0, "0")])
async def test_a_wait_in_vain_closes_the_pool(impl, new_pool, network, timeout, shown):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    with pytest.raises(impl.PoolTimeout) as failure:
        await pool.wait(timeout=timeout)
    assert str(failure.value).startswith(f"pool initialization incomplete after {shown} sec")
    assert pool.closed is True


# Closing


@pytest.mark.parametrize("use", [borrow_and_return, borrow_for_a_block, wait_until_full])
async def test_a_closed_pool_refuses_to_be_used(impl, open_pool, use):
    pool = await open_pool()
    await pool.close()
    with pytest.raises(impl.PoolClosed) as refusal:
        await use(pool)
    assert str(refusal.value) == "the pool 'p' is already closed"


@pytest.mark.parametrize("use", [lambda pool: pool.open(), open_and_wait, enter])
async def test_a_closed_pool_cannot_be_opened_again(impl, open_pool, use):
    pool = await open_pool()
    await pool.close()
    with pytest.raises(impl.PoolClosed) as refusal:
        await use(pool)
    assert str(refusal.value) == "pool has already been opened/closed and cannot be reused"


async def test_closing_twice_is_harmless(open_pool):
    pool = await open_pool()
    await pool.close()
    await pool.close(timeout=0.1)
    assert pool.closed is True


async def test_closing_closes_idle_connections(full_pool):
    pool = await full_pool(max_size=2)
    idle = list(pool._pool)
    await pool.close()
    assert [conn.closed for conn in idle] == [True, True]
    assert pool.get_stats()["pool_available"] == 0


async def test_a_lent_connection_outlives_the_pool_until_it_is_returned(open_pool, works):
    pool = await open_pool()
    conn = await pool.getconn()
    await pool.close()
    assert await works(conn)
    await pool.putconn(conn)
    assert conn.closed
    assert conn._pool is None


async def test_a_block_may_end_after_its_pool(open_pool):
    pool = await open_pool()
    async with pool.connection() as conn:
        await pool.close()
        await conn.execute("select 1")
    assert conn.closed


async def test_a_connection_is_returned_to_a_closed_pool_only_once(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    await pool.close()
    await pool.putconn(conn)
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        await pool.putconn(conn)


async def test_closing_fails_those_who_wait(impl, open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(2)]
    await waiting(pool, 2)
    await pool.close()
    for call in calls:
        with pytest.raises(impl.PoolClosed) as failure:
            await call.result()
        assert str(failure.value) == "the pool 'p' is closed"
    await pool.putconn(conn)


async def test_closing_ends_by_its_timeout_though_a_connect_is_stuck(new_pool, network, eventually):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: network.in_flight == 1)
    start = time.monotonic()
    await pool.close(timeout=0.1)
    assert time.monotonic() - start < 2.0
    assert pool.closed is True


async def test_closing_while_a_connect_is_under_way_warns_of_nothing(
    new_pool, network, spawn, eventually, log
):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: network.in_flight == 1)
    call = spawn(pool.close(timeout=5.0))
    await eventually(lambda: pool.closed)
    network.release()
    await call.result()
    await eventually(lambda: network.in_flight == 0)
    assert log.warnings() == []


async def test_upkeep_of_a_closed_pool_is_harmless(open_pool):
    pool = await open_pool()
    await pool.close()
    await pool.check()
    await pool.drain()
    await pool.resize(2, 3)
    assert (pool.min_size, pool.max_size) == (2, 3)
