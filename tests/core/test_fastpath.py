"""The fast path: what it leaves to the shell, and the block of `with pool.connection()`.

On a real PostgreSQL. A refusal shows in `_lend()` and `_keep()`, which say None and False and
change nothing; that the shell then does the right thing is looked at where there is something to
see.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from core.stubs import in_threads
from psycopg.pq import TransactionStatus

from fastpool import ConnectionPool, PoolClosed

Pool = ConnectionPool[Any]
MakePool = Callable[..., Pool]
LOGGER = "psycopg.pool"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """INFO is off, as in most programs, whatever pytest was told."""
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)


@pytest.fixture
def make_pool(dsn: str, makers_gone: Callable[[], None]) -> Iterator[MakePool]:
    """Make a pool that is full: `make_pool(2, check=...)`."""
    pools: list[Pool] = []

    def make(size: int = 1, cls: type[Pool] = ConnectionPool, **options: Any) -> Pool:
        pool = cls(dsn, min_size=size, **{"open": True, **options})
        pools.append(pool)
        if not pool.closed:
            pool.wait()
            makers_gone()
        return pool

    yield make
    for pool in pools:
        pool.close()


class ShellReached(AssertionError):
    pass


class FastOnly(ConnectionPool[Any]):
    """A pool whose shell must not be reached."""

    def _getconn(self, timeout: float | None) -> Any:
        raise ShellReached

    def _putconn(self, conn: Any) -> None:
        raise ShellReached


def available(pool: Pool) -> int:
    return pool.get_stats()["pool_available"]


def outside(dsn: str, query: str) -> Any:
    """What a session of its own sees."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def table(dsn: str) -> Iterator[str]:
    """An empty table with one column, by its name."""
    name = f"fast_{threading.get_ident()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"drop table if exists {name}")
        conn.execute(f"create table {name} (x int)")
    yield name
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"drop table {name}")


# ---- the plain cases


def test_plain_lending_and_returning_never_reach_the_shell(make_pool: MakePool) -> None:
    pool = make_pool(1, FastOnly)
    for _ in range(3):
        conn = pool.getconn()
        assert conn._pool is pool
        conn.execute("select 1")
        conn.rollback()
        pool.putconn(conn)
        assert conn._pool is None
        with pool.connection() as again:
            assert again is conn
    assert pool.get_stats()["requests_num"] == 6
    assert available(pool) == 1


def test_overriding_the_shell_has_no_part_in_that(make_pool: MakePool) -> None:
    # The pool above would say so.
    pool = make_pool(1, FastOnly)
    conn = pool.getconn()
    conn.execute("select 1")
    with pytest.raises(ShellReached):
        pool.putconn(conn)
    conn.rollback()
    pool.putconn(conn)


# ---- lendings that it refuses


def test_it_lends_nothing_from_a_pool_that_is_not_open(make_pool: MakePool) -> None:
    pool = make_pool(open=False)
    assert pool._lend() is None
    with pytest.raises(PoolClosed, match="not open yet"):
        pool.getconn()


def test_it_lends_nothing_from_a_pool_that_was_closed(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.close()
    assert pool._lend() is None
    with pytest.raises(PoolClosed, match="already closed"):
        pool.getconn()


def test_it_lends_nothing_before_the_first_use_was_warned_of(make_pool: MakePool) -> None:
    with pytest.warns(DeprecationWarning, match="'open' parameter"):
        pool = make_pool(open=None)
        pool.putconn(pool.getconn())
    conn = pool._lend()
    assert conn is not None
    pool.putconn(conn)


def test_it_lends_nothing_when_a_check_has_to_be_called(make_pool: MakePool) -> None:
    checked: list[Any] = []
    pool = make_pool(check=checked.append)
    assert pool._lend() is None
    conn = pool.getconn()
    assert checked == [conn]
    pool.putconn(conn)


def test_it_lends_nothing_when_there_is_something_to_log(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    pool.putconn(pool.getconn())
    assert not caplog.records
    with caplog.at_level(logging.INFO, LOGGER):
        assert pool._lend() is None
        conn = pool.getconn()
        assert not pool._keep(conn)
        pool.putconn(conn)
    assert [record.getMessage().split()[1] for record in caplog.records] == [
        "requested",
        "given",
        "connection",
    ]
    caplog.clear()
    pool.putconn(pool.getconn())
    assert not caplog.records


def test_it_sees_the_level_of_the_logger_above_its_own(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    pool.putconn(pool.getconn())
    logging.getLogger(LOGGER).setLevel(logging.NOTSET)
    # The driver sets a level on this one.
    with caplog.at_level(logging.INFO, "psycopg"):
        pool.putconn(pool.getconn())
    assert len(caplog.records) == 3


def test_it_lends_no_expired_connection(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    pool = make_pool(max_lifetime=0.001)
    old = pool._pool[0]
    eventually(lambda: pool._table.is_expired(old._slot))
    pool.max_lifetime = 1000
    conn = pool.getconn()
    assert conn is not old
    assert old.closed
    pool.putconn(conn)


def test_it_lends_no_drained_connection(make_pool: MakePool) -> None:
    pool = make_pool()
    old = pool._pool[0]
    pool._table.new_epoch()
    conn = pool.getconn()
    assert conn is not old
    assert old.closed
    pool.putconn(conn)


def test_it_lends_nothing_over_the_heads_of_those_who_wait_for_long(make_pool: MakePool) -> None:
    class Strict(ConnectionPool[Any]):
        _TAU_NS = 0

    pool = make_pool(2, Strict)
    conns = [pool.getconn(), pool.getconn()]
    waiter = pool._new_waiter()
    assert pool._table.enqueue(waiter) is None
    assert pool._lend() is None
    pool.putconn(conns[0])
    assert pool._table.resume(waiter) is conns[0]
    pool.putconn(conns[1])
    assert pool._lend() is conns[1]
    for conn in conns:
        pool.putconn(conn)


def test_it_lends_nothing_when_nothing_is_free(make_pool: MakePool) -> None:
    pool = make_pool()
    conn = pool.getconn()
    assert pool._lend() is None
    pool.putconn(conn)


# ---- returns that it refuses


def refused(pool: Pool, conn: Any) -> bool:
    """Whether the fast path leaves a return to the shell, and everything as it was."""
    before = pool.snapshot().counts
    kept = pool._keep(conn)
    return not kept and pool.snapshot().counts == before


def test_it_keeps_nothing_when_a_reset_has_to_be_called(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    done: list[Any] = []
    pool = make_pool(reset=done.append)
    conn = pool.getconn()
    assert refused(pool, conn)
    pool.putconn(conn)
    eventually(lambda: available(pool) == 1)
    assert done == [conn]


@pytest.mark.parametrize("query", ["select 1", "select oops"], ids=["INTRANS", "INERROR"])
def test_it_keeps_no_connection_with_an_open_transaction(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    with contextlib.suppress(psycopg.Error):
        conn.execute(query)
    assert refused(pool, conn)
    pool.putconn(conn)
    assert conn.pgconn.transaction_status == TransactionStatus.IDLE
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert list(pool._pool) == [conn]


def test_it_keeps_no_broken_connection(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    conn.pgconn.finish()
    assert refused(pool, conn)
    pool.putconn(conn)
    eventually(lambda: available(pool) == 1)
    assert list(pool._pool) != [conn]


def test_it_keeps_no_connection_that_was_drained_while_lent(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    pool.drain()
    assert refused(pool, conn)
    pool.putconn(conn)
    assert conn.closed
    eventually(lambda: available(pool) == 1)


def test_it_keeps_no_connection_that_expired_while_lent(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    pool = make_pool(max_lifetime=0.2)
    conn = pool.getconn()
    eventually(lambda: pool._table.is_expired(conn._slot))
    pool.max_lifetime = 1000
    assert refused(pool, conn)
    pool.putconn(conn)
    assert conn.closed


def test_it_keeps_nothing_beyond_what_a_resize_left_room_for(make_pool: MakePool) -> None:
    pool = make_pool(2)
    conns = [pool.getconn(), pool.getconn()]
    pool.resize(1, 1)
    assert refused(pool, conns[0])
    pool.putconn(conns[0])
    assert conns[0].closed
    assert pool._keep(conns[1])
    assert (available(pool), pool.get_stats()["pool_size"]) == (1, 1)


def test_it_keeps_nothing_for_a_pool_that_was_closed(make_pool: MakePool) -> None:
    pool = make_pool()
    conn = pool.getconn()
    pool.close()
    assert refused(pool, conn)
    pool.putconn(conn)
    assert conn.closed
    assert pool.get_stats()["pool_size"] == 0


def test_it_keeps_no_connection_of_another_pool(make_pool: MakePool) -> None:
    pool, other = make_pool(), make_pool()
    conn = other.getconn()
    assert refused(pool, conn)
    with pytest.raises(ValueError, match="it comes from pool"):
        pool.putconn(conn)
    other.putconn(conn)


def test_it_keeps_no_connection_of_no_pool(make_pool: MakePool, dsn: str) -> None:
    pool = make_pool()
    with psycopg.connect(dsn) as conn:
        assert refused(pool, conn)
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            pool.putconn(conn)


def test_it_keeps_nothing_twice(make_pool: MakePool) -> None:
    pool = make_pool()
    conn = pool.getconn()
    assert pool._keep(conn)
    assert refused(pool, conn)
    with pytest.raises(ValueError, match="can't return connection"):
        pool.putconn(conn)
    assert list(pool._pool) == [conn]


def test_it_does_not_keep_what_a_lease_stands_for(make_pool: MakePool) -> None:
    pool = make_pool()
    inner = pool._pool[0]
    lease = pool.connect()
    assert refused(pool, inner)
    lease.close()
    assert list(pool._pool) == [inner]
    conn = pool.getconn()
    assert conn is inner
    assert pool._keep(conn)


def test_only_the_first_lease_of_a_connection_reaches_the_shell(make_pool: MakePool) -> None:
    class Counts(FastOnly):
        asked = 0

        def _lease(self, conn: Any) -> Any:
            self.asked += 1
            return super()._lease(conn)

    pool = make_pool(2, Counts)
    for _ in range(3):
        with pool.connect(), pool.connect(timeout=5.0):
            pass
        pool.connect().close()
    assert pool.asked == 2
    assert available(pool) == 2


# ---- the block: nothing before it is entered, everything given back after it


def test_a_block_that_is_not_entered_lends_nothing(make_pool: MakePool) -> None:
    pool = make_pool()
    block = pool.connection()
    assert available(pool) == 1
    assert pool.get_stats()["requests_num"] == 0
    with block:
        assert available(pool) == 0
    assert available(pool) == 1


def test_a_block_that_is_never_entered_is_no_fault(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.connection()
    gc.collect()
    assert available(pool) == 1


def test_what_a_block_did_is_committed(make_pool: MakePool, dsn: str, table: str) -> None:
    pool = make_pool()
    with pool.connection() as conn:
        conn.execute(f"insert into {table} values (1)")
    assert outside(dsn, f"select count(*) from {table}") == 1
    assert conn.pgconn.transaction_status == TransactionStatus.IDLE


def test_what_a_block_that_raised_did_is_rolled_back(
    make_pool: MakePool, dsn: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.execute(f"insert into {table} values (1)")
        raise ZeroDivisionError
    assert outside(dsn, f"select count(*) from {table}") == 0
    assert available(pool) == 1
    assert not caplog.records


def test_a_transaction_inside_a_block_is_its_own(make_pool: MakePool, dsn: str, table: str) -> None:
    pool = make_pool()
    with pool.connection() as conn:
        with conn.transaction():
            conn.execute(f"insert into {table} values (1)")
        assert outside(dsn, f"select count(*) from {table}") == 1
    assert available(pool) == 1


def test_a_block_ends_a_pipeline_as_the_driver_does(
    make_pool: MakePool, dsn: str, table: str
) -> None:
    pool = make_pool()
    with pool.connection() as conn, conn.pipeline():
        conn.execute(f"insert into {table} values (1)")
    assert outside(dsn, f"select count(*) from {table}") == 1


def test_a_block_gives_back_a_connection_that_broke_in_it(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    pool = make_pool()
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute("select pg_terminate_backend(pg_backend_pid())")
    eventually(lambda: available(pool) == 1)
    assert pool.get_stats()["returns_bad"] == 1


def test_a_block_that_is_dropped_while_entered_gives_back(
    make_pool: MakePool, dsn: str, table: str
) -> None:
    pool = make_pool()
    block = pool.connection()
    conn = block.__enter__()
    conn.execute(f"insert into {table} values (1)")
    del block
    gc.collect()
    assert list(pool._pool) == [conn]
    assert conn.pgconn.transaction_status == TransactionStatus.IDLE
    assert outside(dsn, f"select count(*) from {table}") == 0


def test_a_block_that_is_dropped_in_a_cycle_costs_no_slot(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    # The collector ends the connection with it, before or after the block.
    pool = make_pool()

    class Holder:
        pass

    holder = Holder()
    holder.itself = holder  # type: ignore[attr-defined]
    holder.block = pool.connection()  # type: ignore[attr-defined]
    holder.conn = holder.block.__enter__()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del holder
        gc.collect()
        eventually(lambda: available(pool) == 1)
    pool.putconn(pool.getconn())


def test_a_block_that_is_entered_cannot_be_entered_again(make_pool: MakePool) -> None:
    pool = make_pool(2)
    block = pool.connection()
    with block as conn:
        with pytest.raises(RuntimeError, match="entered already"):
            block.__enter__()
        assert available(pool) == 1
        conn.execute("select 1")
    assert available(pool) == 2


def test_the_time_in_a_block_is_counted_as_usage(make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection() as conn:
        conn.execute("select pg_sleep(0.02)")
    assert 20 <= pool.get_stats()["usage_ms"] < 10_000


def test_a_block_uses_the_pools_own_getconn_and_putconn(make_pool: MakePool) -> None:
    calls: list[str] = []

    class Mine(ConnectionPool[Any]):
        def getconn(self, timeout: float | None = None) -> Any:
            calls.append(f"getconn {timeout}")
            return super().getconn(timeout)

        def putconn(self, conn: Any) -> None:
            calls.append("putconn")
            super().putconn(conn)

    pool = make_pool(1, Mine)
    with pool.connection(3.5):
        pass
    with pool.connection():
        pass
    assert calls == ["getconn 3.5", "putconn", "getconn None", "putconn"]


def test_putconn_replaced_on_an_instance_is_used(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    put: list[Any] = []
    original = pool.putconn

    def putconn(conn: Any) -> None:
        put.append(conn)
        original(conn)

    monkeypatch.setattr(pool, "putconn", putconn)
    with pool.connection() as conn:
        pass
    assert put == [conn]


def test_a_stale_block_leaves_the_next_borrowers_transaction_alone(
    make_pool: MakePool, dsn: str, table: str
) -> None:
    # Returned inside the block, and lent to somebody else by the time the block ends.
    pool = make_pool()
    with pytest.raises(ValueError, match="can't return connection"), pool.connection() as conn:
        pool.putconn(conn)
        other = pool.getconn()
        assert other is conn
        other.execute(f"insert into {table} values (1)")
    assert other.pgconn.transaction_status == TransactionStatus.INTRANS
    assert outside(dsn, f"select count(*) from {table}") == 0
    assert available(pool) == 0
    other.rollback()
    pool.putconn(other)


def test_a_block_closed_within_leaves_the_next_borrowers_transaction_alone(
    make_pool: MakePool, dsn: str, table: str
) -> None:
    pool = make_pool(close_returns=True)
    with pool.connection() as conn:
        conn.close()
        other = pool.getconn()
        assert other is conn
        other.execute(f"insert into {table} values (1)")
    assert other.pgconn.transaction_status == TransactionStatus.INTRANS
    assert available(pool) == 0
    other.rollback()
    pool.putconn(other)


def test_a_block_that_is_over_keeps_no_trace_of_its_connection(
    make_pool: MakePool, eventually: Callable[..., object]
) -> None:
    # Else one that is kept hides that the connection was lost by its next borrower.
    pool = make_pool()
    block = pool.connection()
    with block:
        pass
    with pytest.warns(ResourceWarning, match="without being given back"):
        pool.getconn()
        gc.collect()
    eventually(lambda: available(pool) == 1)


# ---- the block as a decorator


def test_a_block_may_decorate_a_function(make_pool: MakePool) -> None:
    pool = make_pool()
    seen: list[int] = []

    @pool.connection()  # type: ignore[operator]
    def add(x: int, *, y: int) -> int:
        """Add."""
        seen.append(available(pool))
        return x + y

    assert available(pool) == 1
    assert [add(1, y=2), add(3, y=4)] == [3, 7]
    assert seen == [0, 0]
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert available(pool) == 1


def test_each_call_of_a_decorated_function_has_a_lending_of_its_own(make_pool: MakePool) -> None:
    pool = make_pool(2)
    barrier = threading.Barrier(2, timeout=10)

    @pool.connection()  # type: ignore[operator]
    def meet() -> int:
        barrier.wait()
        free = available(pool)
        barrier.wait()
        return free

    assert in_threads(meet, meet) == [0, 0]
    assert available(pool) == 2


def test_a_decorated_function_that_raises_gives_back(make_pool: MakePool) -> None:
    pool = make_pool()

    @pool.connection()  # type: ignore[operator]
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert available(pool) == 1


# ---- connection classes whose block is not the driver's own


def recorder(calls: list[str], name: str) -> Callable[..., Any]:
    """A method that records its call and does what the class above it does."""

    def method(self: Any, *args: Any) -> Any:
        calls.append(name)
        return getattr(psycopg.Connection, name)(self, *args)

    return method


@pytest.mark.parametrize("name", ["__enter__", "__exit__", "commit", "wait"])
def test_a_method_that_a_connection_class_overrides_is_called(
    make_pool: MakePool, name: str
) -> None:
    calls: list[str] = []
    cls = type("Mine", (psycopg.Connection,), {name: recorder(calls, name)})
    pool = make_pool(connection_class=cls)
    calls.clear()
    with pool.connection():
        pass
    assert name in calls
    assert available(pool) == 1


def test_a_class_that_overrides_nothing_is_as_plain_as_the_drivers(make_pool: MakePool) -> None:
    class Mine(psycopg.Connection[Any]):
        extra = 1

    pool = make_pool(connection_class=Mine)
    with pool.connection() as conn:
        assert conn.extra == 1
    assert available(pool) == 1


@pytest.mark.parametrize("name", ["__enter__", "__exit__", "commit", "_commit_gen"])
def test_a_method_patched_after_the_first_use_is_called(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pool = make_pool()
    for _ in range(3):
        with pool.connection():
            pass
    calls: list[str] = []
    original = getattr(psycopg.Connection, name)

    @functools.wraps(original)
    def patched(self: Any, *args: Any) -> Any:
        calls.append(name)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, name, patched)
        with pool.connection():
            pass
        assert calls == [name]
    with pool.connection():
        pass
    assert calls == [name]


def test_a_method_patched_on_a_base_class_after_the_first_use_is_called(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    with pool.connection():
        pass
    (base,) = (cls for cls in psycopg.Connection.__mro__ if "_commit_gen" in vars(cls))
    calls: list[int] = []
    original = vars(base)["_commit_gen"]

    def patched(self: Any) -> Any:
        calls.append(1)
        return original(self)

    monkeypatch.setattr(base, "_commit_gen", patched)
    with pool.connection():
        pass
    assert calls == [1]


def test_commit_patched_on_an_instance_is_called(make_pool: MakePool) -> None:
    pool = make_pool()
    calls: list[int] = []
    with pool.connection() as conn:
        conn.commit = lambda: calls.append(1)
    assert calls == [1]
    del conn.commit


def test_a_connection_that_cannot_be_entered_is_given_back(make_pool: MakePool) -> None:
    class Sour(psycopg.Connection[Any]):
        def __enter__(self) -> Any:
            raise ZeroDivisionError

    pool = make_pool(connection_class=Sour)
    with pytest.raises(ZeroDivisionError), pool.connection():
        pytest.fail("entered")
    assert available(pool) == 1


def test_a_connection_that_cannot_be_left_is_given_back(make_pool: MakePool) -> None:
    class Sour(psycopg.Connection[Any]):
        def __exit__(self, *exc_info: Any) -> None:
            raise ZeroDivisionError

    pool = make_pool(connection_class=Sour)
    with pytest.raises(ZeroDivisionError), pool.connection():
        pass
    assert available(pool) == 1


def test_a_connection_class_may_swallow_an_exception(make_pool: MakePool) -> None:
    class Calm(psycopg.Connection[Any]):
        def __exit__(self, *exc_info: Any) -> Any:
            self.rollback()
            return True

    pool = make_pool(connection_class=Calm)
    with pool.connection():
        raise ZeroDivisionError
    assert available(pool) == 1
