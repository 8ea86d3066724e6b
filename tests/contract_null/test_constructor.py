"""What a null pool is made of: its sizes, its parameters, and how it is opened."""

import inspect
import warnings

import pytest

pytestmark = pytest.mark.anyio


# Sizes


@pytest.mark.parametrize(
    "sizes", [{"min_size": 1}, {"min_size": -1}, {"min_size": 1, "max_size": 0}]
)
def test_a_minimum_other_than_zero_is_refused(pool_class, dsn, sizes):
    with pytest.raises(ValueError, match="^null pools must have min_size = 0$"):
        pool_class(dsn, open=False, **sizes)


def test_a_negative_maximum_is_refused(pool_class, dsn):
    with pytest.raises(ValueError, match="^max_size must be greater or equal than min_size$"):
        pool_class(dsn, open=False, max_size=-1)


def test_a_pool_without_workers_is_refused(pool_class, dsn):
    with pytest.raises(ValueError, match="^num_workers must be at least 1$"):
        pool_class(dsn, open=False, num_workers=0)


def test_the_minimum_is_looked_at_first(pool_class, dsn):
    with pytest.raises(ValueError, match="min_size"):
        pool_class(dsn, open=False, min_size=1, max_size=-1, num_workers=0)


@pytest.mark.parametrize(
    ("sizes", "max_size"),
    [({}, 0), ({"max_size": None}, 0), ({"max_size": 0}, 0), ({"min_size": 0, "max_size": 3}, 3)],
)
def test_the_sizes_are_what_was_said_and_zero_by_default(pool_class, dsn, sizes, max_size):
    pool = pool_class(dsn, open=False, **sizes)
    assert (pool.min_size, pool.max_size) == (0, max_size)


# Parameters


def test_the_minimum_is_the_only_default_that_differs(impl, kind, pool_class):
    plain = impl.ConnectionPool if kind == "threads" else impl.AsyncConnectionPool
    own, common = (inspect.signature(cls.__init__).parameters for cls in (pool_class, plain))
    assert list(own) == list(common)
    for name, parameter in own.items():
        assert parameter.kind == common[name].kind
        if name == "min_size":
            assert (parameter.default, common[name].default) == (0, 4)
        else:
            assert parameter.default == common[name].default


def test_only_the_address_may_be_given_by_position(pool_class, dsn):
    assert pool_class(dsn, open=False).conninfo == dsn
    with pytest.raises(TypeError):
        pool_class(dsn, object())


def test_an_unknown_parameter_is_refused(pool_class):
    with pytest.raises(TypeError, match="no_such_thing"):
        pool_class(no_such_thing=1)


def test_close_returns_is_accepted_and_has_no_effect(pool_class, dsn):
    assert pool_class(dsn, open=False, close_returns=True).close_returns is False


def test_a_null_pool_is_a_pool(impl, kind, pool_class):
    plain = impl.ConnectionPool if kind == "threads" else impl.AsyncConnectionPool
    assert issubclass(pool_class, plain)


def test_the_class_takes_its_type_of_connection(pool_class, dsn):
    assert isinstance(pool_class[object](dsn, open=False), pool_class)


def test_it_says_what_it_is(impl, kind, new_pool):
    module, name = {
        "threads": ("null_pool", "NullConnectionPool"),
        "tasks": ("null_pool_async", "AsyncNullConnectionPool"),
    }[kind]
    assert repr(new_pool()).startswith(f"<{impl.__name__}.{module}.{name} 'p' at 0x")


def test_names_are_counted_together_with_the_plain_pools(impl, kind, pool_class, dsn):
    plain = impl.ConnectionPool if kind == "threads" else impl.AsyncConnectionPool
    first = int(plain(dsn, open=False).name.removeprefix("pool-"))
    assert pool_class(dsn, open=False).name == f"pool-{first + 1}"


# Opening


async def test_a_new_pool_refuses_to_be_used(impl, new_pool, do, entered):
    pool = new_pool()
    assert pool.closed is True
    with pytest.raises(impl.PoolClosed) as refusal:
        await do(pool.getconn)
    assert str(refusal.value) == "the pool 'p' is not open yet"
    with pytest.raises(impl.PoolClosed, match="not open yet"):
        async with entered(pool.connection()):
            pass
    with pytest.raises(impl.PoolClosed, match="not open yet"):
        await do(pool.wait)


async def test_opening_connects_nothing(open_pool, network):
    pool = await open_pool(connection_class=network.connection_class)
    assert pool.closed is False
    assert network.attempts == []
    assert pool.get_stats()["pool_size"] == 0


async def test_opening_twice_is_harmless(open_pool, do, works):
    pool = await open_pool()
    await do(pool.open)
    conn = await do(pool.getconn)
    assert await works(conn)
    await do(pool.putconn, conn)


async def test_opening_may_show_that_connecting_works(new_pool, network, do):
    pool = new_pool(connection_class=network.connection_class)
    await do(pool.open, wait=True, timeout=5.0)
    assert len(network.attempts) == 1


async def test_a_block_opens_and_closes(new_pool, do, entered):
    pool = new_pool()
    async with entered(pool) as same:
        assert same is pool
        assert not pool.closed
        await do(pool.putconn, await do(pool.getconn))
    assert pool.closed


async def test_a_closed_pool_stays_closed(impl, open_pool, do):
    pool = await open_pool()
    await do(pool.close)
    await do(pool.close)
    with pytest.raises(impl.PoolClosed) as refusal:
        await do(pool.open)
    assert str(refusal.value) == "pool has already been opened/closed and cannot be reused"
    with pytest.raises(impl.PoolClosed) as refusal:
        await do(pool.getconn)
    assert str(refusal.value) == "the pool 'p' is already closed"
    with pytest.raises(impl.PoolClosed) as refusal:
        await do(pool.wait)
    assert str(refusal.value) == "the pool 'p' is already closed"


# Opened by the constructor

WARNED = {
    "threads": (
        DeprecationWarning,
        "the default for the NullConnectionPool 'open' parameter will become 'False'",
    ),
    "tasks": (
        RuntimeWarning,
        "opening the async pool AsyncNullConnectionPool in the constructor is deprecated",
    ),
}


async def borrow(pool, do):
    await do(pool.putconn, await do(pool.getconn))


async def open_and_wait(pool, do):
    await do(pool.open, wait=True, timeout=5.0)


async def wait(pool, do):
    await do(pool.wait, timeout=5.0)


@pytest.mark.parametrize("use", [borrow, wait, open_and_wait])
async def test_a_pool_that_was_not_told_whether_to_open_warns_at_first_use(kind, new_pool, do, use):
    pool = new_pool(open=None)
    assert not pool.closed
    category, text = WARNED[kind]
    with pytest.warns(category) as caught:
        await use(pool, do)
        await borrow(pool, do)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(text)


async def test_a_pool_in_a_block_warns_of_nothing(new_pool, do, entered):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with entered(new_pool(open=None)) as pool:
            await borrow(pool, do)


@pytest.mark.parametrize("kind", ["threads"], indirect=True)
async def test_a_pool_for_threads_may_be_opened_by_its_constructor(new_pool, do, kind):
    pool = new_pool(open=True)
    assert not pool.closed
    await borrow(pool, do)


@pytest.mark.parametrize("kind", ["tasks"], indirect=True)
async def test_a_pool_for_tasks_that_its_constructor_opens_warns_there(new_pool, do, kind):
    category, text = WARNED[kind]
    with pytest.warns(category) as caught:
        pool = new_pool(open=True)
    assert str(caught[0].message).startswith(text)
    await borrow(pool, do)


@pytest.mark.parametrize("kind", ["tasks"], indirect=True)
def test_a_pool_for_tasks_does_not_open_without_a_loop(pool_class, dsn, kind):
    with pytest.raises(RuntimeError) as refusal:
        pool_class(dsn)
    assert str(refusal.value) == "AsyncNullConnectionPool open with no running loop"
