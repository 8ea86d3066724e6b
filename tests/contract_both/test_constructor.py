"""Parameters: their defaults, what is refused, what is readable afterwards."""

import asyncio

import pytest
from driver import VERSION
from shared.kinds import others

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"min_size": -1}, "min_size cannot be negative"),
        ({"min_size": 2, "max_size": 1}, "max_size must be greater or equal than min_size"),
        ({"min_size": 1, "max_size": -1}, "max_size must be greater or equal than min_size"),
        ({"min_size": 0}, "if min_size is 0 max_size must be greater than 0"),
        ({"min_size": 0, "max_size": 0}, "if min_size is 0 max_size must be greater than 0"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
    ],
)
def test_an_impossible_number_is_refused(new_pool, options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        new_pool(**options)


def test_sizes_are_looked_at_before_workers(new_pool):
    with pytest.raises(ValueError, match="min_size"):
        new_pool(min_size=-1, num_workers=0)


def test_only_conninfo_may_be_positional(pool_class, connection_class, dsn):
    with pytest.raises(TypeError):
        pool_class(dsn, connection_class, open=False)


def test_conninfo_may_be_a_keyword(pool_class, dsn):
    assert pool_class(conninfo=dsn, open=False).conninfo == dsn


def test_an_unknown_parameter_is_refused(new_pool):
    with pytest.raises(TypeError):
        new_pool(maximum_size=3)


def test_the_defaults_can_be_read(pool_class, connection_class):
    pool = pool_class(open=False)
    assert (pool.conninfo, pool.kwargs, pool.connection_class) == ("", None, connection_class)
    assert (pool.min_size, pool.max_size) == (4, 4)
    assert (pool.timeout, pool.max_waiting) == (30.0, 0)
    assert (pool.max_lifetime, pool.max_idle) == (3600.0, 600.0)
    assert (pool.reconnect_timeout, pool.num_workers) == (300.0, 3)
    assert pool.close_returns is False


def test_what_was_given_can_be_read(pool_class, connection_class, dsn):
    options = {
        "connection_class": type("Mine", (connection_class,), {}),
        "kwargs": {"autocommit": True},
        "min_size": 1,
        "max_size": 2,
        "name": "reports",
        "timeout": 3.0,
        "max_waiting": 4,
        "max_lifetime": 5.0,
        "max_idle": 6.0,
        "reconnect_timeout": 7.0,
        "num_workers": 8,
    }
    pool = pool_class(dsn, open=False, **options)
    assert {name: getattr(pool, name) for name in options} == options


@pytest.mark.parametrize(
    "name",
    [
        "close_returns",
        "connection_class",
        "conninfo",
        "kwargs",
        "max_idle",
        "max_lifetime",
        "max_waiting",
        "name",
        "num_workers",
        "reconnect_timeout",
        "timeout",
    ],
)
def test_the_attribute_can_be_assigned(new_pool, name):
    pool, value = new_pool(), object()
    setattr(pool, name, value)
    assert getattr(pool, name) is value


def test_max_size_is_min_size_unless_given(new_pool):
    pool = new_pool(min_size=3)
    assert (pool.min_size, pool.max_size) == (3, 3)


def test_no_time_is_a_time(new_pool):
    pool = new_pool(timeout=0, max_lifetime=0, reconnect_timeout=0, max_waiting=0)
    assert pool.timeout == 0


@pytest.mark.parametrize("nameless", [None, ""])
def test_a_pool_without_a_name_gets_a_numbered_one(new_pool, nameless):
    first, second = (int(new_pool(name=nameless).name.removeprefix("pool-")) for _ in "12")
    assert second == first + 1


def test_a_given_name_does_not_advance_the_number(new_pool):
    first = int(new_pool(name=None).name.removeprefix("pool-"))
    new_pool(name="reports")
    assert new_pool(name=None).name == f"pool-{first + 1}"


def test_a_subclass_shares_the_numbers(pool_class, new_pool):
    class Mine(pool_class):
        pass

    first = int(new_pool(name=None).name.removeprefix("pool-"))
    assert new_pool(cls=Mine, name=None).name == f"pool-{first + 1}"


async def test_a_pool_that_is_not_opened_starts_nothing(new_pool, network):
    before = others()
    new_pool(connection_class=network.connection_class)
    await asyncio.sleep(0)
    assert others() <= before
    assert network.attempts == []


@pytest.mark.skipif(VERSION >= (3, 3, 0), reason="psycopg 3.3 can return connections by itself")
def test_an_older_psycopg_cannot_return_connections_of_a_custom_class(new_pool, network):
    with pytest.raises(TypeError):
        new_pool(connection_class=network.connection_class, close_returns=True, min_size=-1)
