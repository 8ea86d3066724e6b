"""`pool.connect()` lends a connection whose close() gives it back, for that lending only."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from driver import needs_notifies
from psycopg.rows import dict_row

import fastpool

CLOSED = pytest.raises(psycopg.OperationalError, match="the connection is closed")


def has_table(conn: Any) -> bool:
    """Whether this session has the temporary table `t`."""
    row = conn.execute("select to_regclass('pg_temp.t') is not null").fetchone()
    conn.rollback()
    return bool(row[0])


# --- the instance -----------------------------------------------------------------------------


def test_a_lease_is_a_psycopg_connection(new_pool: Callable[..., Any]) -> None:
    with new_pool().connect() as conn:
        assert isinstance(conn, psycopg.Connection)
        assert type(conn).__name__ == "Connection"
        assert "psycopg.Connection [IDLE]" in repr(conn)
        assert conn.execute("select 1").fetchone() == (1,)


class Tagged(psycopg.Connection[Any]):
    """A connection class as programs write them: own constructor, attribute, method, close()."""

    closings: list[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tag = "new"
        self.exits = 0

    def shout(self) -> str:
        return self.tag.upper()

    def __exit__(self, *exc_info: Any) -> None:
        self.exits += 1
        super().__exit__(*exc_info)

    def close(self) -> None:
        type(self).closings.append(self.pgconn.backend_pid)
        super().close()


@pytest.fixture
def tagged() -> type[Tagged]:
    class Fresh(Tagged):
        closings: list[int] = []  # noqa: RUF012  # the class is made anew for each test

    return Fresh


def test_a_lease_is_an_instance_of_the_pools_connection_class(
    new_pool: Callable[..., Any], tagged: type[Tagged]
) -> None:
    with new_pool(connection_class=tagged).connect() as conn:
        assert isinstance(conn, tagged)
        assert conn.tag == "new"
        assert conn.shout() == "NEW"


def test_the_connection_class_close_runs_when_the_session_ends_and_not_at_each_return(
    new_pool: Callable[..., Any], tagged: type[Tagged], pid: Callable[[Any], int]
) -> None:
    pool = new_pool(connection_class=tagged)
    for _ in range(3):
        with pool.connect() as conn:
            session = pid(conn)
    assert tagged.closings == []
    pool.close()
    assert tagged.closings == [session]


def test_the_connection_class_exit_runs_at_the_end_of_a_block(
    new_pool: Callable[..., Any], tagged: type[Tagged]
) -> None:
    pool = new_pool(connection_class=tagged)
    with pool.connect():
        pass
    with pool.connect() as conn:
        assert conn.exits == 1


def test_a_lease_is_of_the_class_that_its_connection_has_now(
    new_pool: Callable[..., Any],
) -> None:
    class Later(psycopg.Connection[Any]):
        pass

    pool = new_pool()
    pool.connect().close()
    with pool.connection() as conn:
        conn.__class__ = Later
    with pool.connect() as lease:
        assert isinstance(lease, Later)
        assert lease.execute("select 1").fetchone() == (1,)


def test_a_lease_has_what_was_added_to_its_class_since_the_last_one(
    new_pool: Callable[..., Any], tagged: type[Tagged], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(connection_class=tagged)
    pool.connect().close()
    monkeypatch.setattr(tagged, "shout", lambda self: self.tag * 2)
    monkeypatch.setattr(tagged, "whisper", lambda self: self.tag, raising=False)
    with pool.connect() as lease:
        assert (lease.shout(), lease.whisper()) == ("newnew", "new")


def test_a_class_that_leases_cannot_be_made_of_is_refused_and_nothing_stays_lent(
    new_pool: Callable[..., Any],
) -> None:
    class Sealed(psycopg.Connection[Any]):
        def __init_subclass__(cls) -> None:
            if cls.__name__ == "Sealed":
                raise TypeError("no more of these")

    pool = new_pool(connection_class=Sealed)
    for _ in range(2):
        with pytest.raises(TypeError, match="no more of these"):
            pool.connect()
        assert pool.snapshot().counts["in_use"] == 0
    with pool.connection() as conn:
        assert type(conn) is Sealed


def test_the_driver_finalizes_no_lease(
    new_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool()
    lease = pool.connect()
    # Whoever sets a method of the class has Python look up those of all derived ones again.
    monkeypatch.setattr(psycopg.Connection, "__del__", lambda self: dropped.append(self))
    dropped: list[Any] = []
    lease.close()
    del lease
    pool.connect().close()
    gc.collect()
    assert dropped == []


def test_attributes_set_on_a_lease_belong_to_the_session(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    with pool.connect() as conn:
        conn.note = "seen"
        conn.row_factory = dict_row
        conn.autocommit = True
    with pool.connection() as conn:
        assert conn.note == "seen"
        assert conn.autocommit
        assert conn.execute("select 1 as one").fetchone() == {"one": 1}
        conn.note = "changed"
    with pool.connect() as conn:
        assert conn.note == "changed"


# --- giving back ------------------------------------------------------------------------------


def test_close_gives_the_session_back(
    new_pool: Callable[..., Any], pid: Callable[[Any], int]
) -> None:
    pool = new_pool()
    conn = pool.connect()
    session = pid(conn)
    assert pool.snapshot().counts["in_use"] == 1
    conn.close()
    assert pool.snapshot().counts["available"] == 1
    with pool.connection() as again:
        assert pid(again) == session


def test_close_rolls_back_what_is_open(new_pool: Callable[..., Any], log: Any) -> None:
    pool = new_pool()
    conn = pool.connect()
    conn.execute("create temp table t ()")
    conn.close()
    assert log.kinds() == {"rolling back": 1}
    with pool.connect() as conn:
        assert not has_table(conn)


def test_a_block_commits_and_gives_back(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    with pool.connect() as conn:
        conn.execute("create temp table t ()")
    assert conn.closed
    assert pool.snapshot().counts["available"] == 1
    with pool.connect() as conn:
        assert has_table(conn)


def test_a_block_that_raises_rolls_back_and_gives_back(
    new_pool: Callable[..., Any], log: Any
) -> None:
    pool = new_pool()
    with pytest.raises(ZeroDivisionError):
        with pool.connect() as conn:
            conn.execute("create temp table t ()")
            raise ZeroDivisionError
    assert conn.closed
    assert pool.snapshot().counts["available"] == 1
    assert log.warnings() == []
    with pool.connect() as conn:
        assert not has_table(conn)


def test_a_block_whose_commit_fails_raises_and_gives_back(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    with pytest.raises(psycopg.errors.UniqueViolation):
        with pool.connect() as conn:
            conn.execute("create temp table t (n int unique deferrable initially deferred)")
            conn.execute("insert into t values (1), (1)")
    assert conn.closed
    assert pool.snapshot().counts["available"] == 1


def test_closing_inside_the_block_is_enough(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(max_size=2)
    with pool.connect() as conn:
        conn.close()
        with pool.connection() as other:
            assert other.execute("select 1").fetchone() == (1,)
    assert pool.snapshot().counts["available"] == 1


def test_closing_twice_is_harmless(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.connect()
    conn.close()
    conn.close()
    assert pool.snapshot().counts["available"] == 1


def test_closing_an_old_lease_leaves_the_new_borrower_alone(
    new_pool: Callable[..., Any], pid: Callable[[Any], int]
) -> None:
    pool = new_pool()
    old = pool.connect()
    session = pid(old)
    old.close()
    for borrow in (pool.connect, pool.getconn):
        new = borrow()
        assert pid(new) == session
        new.execute("select 1")
        old.close()
        assert not new.closed
        assert new.execute("select 2").fetchone() == (2,)
        new.rollback()
        assert pool.snapshot().counts["in_use"] == 1
        pool.putconn(new)


def test_of_two_threads_that_close_one_lease_one_returns_it(
    new_pool: Callable[..., Any], at_once: Callable[..., list[Any]]
) -> None:
    pool = new_pool(min_size=2)
    for _ in range(100):
        conn = pool.connect()
        assert at_once(2, conn.close) == [None, None]
        assert pool.snapshot().counts["available"] == 2
        with pool.connect(timeout=0.0), pool.connect(timeout=0.0):
            with pytest.raises(fastpool.PoolTimeout):
                pool.connect(timeout=0.0)


def test_a_lease_may_be_closed_by_another_thread(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    pool = new_pool()
    conn = pool.connect()
    waiter = spawn(pool.connect, 5.0)
    spawn(conn.close).result()
    waiter.result().close()


def test_connect_raises_pool_timeout_when_all_are_lent(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    with pool.connect(), pytest.raises(fastpool.PoolTimeout, match="after 0.01 sec"):
        pool.connect(timeout=0.01)


def test_a_lease_closed_after_its_pool_ends_the_session(
    new_pool: Callable[..., Any], sessions: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kwargs=sessions.kwargs)
    conn = pool.connect()
    pool.close()
    assert conn.execute("select 1").fetchone() == (1,)
    conn.rollback()
    conn.close()
    assert conn.closed
    eventually(lambda: not sessions.pids())


def test_a_lease_of_a_pool_with_reset_ends_at_once(
    new_pool: Callable[..., Any], available: Callable[..., None]
) -> None:
    seen: list[Any] = []
    pool = new_pool(reset=seen.append)
    conn = pool.connect()
    conn.close()
    assert conn.closed
    available(pool, 1)
    assert len(seen) == 1
    assert not isinstance(seen[0], type(conn))  # the callback gets the session, not a lease


def test_a_lease_of_a_pool_that_closes_to_return_works_the_same(
    new_pool: Callable[..., Any], pid: Callable[[Any], int]
) -> None:
    pool = new_pool(close_returns=True)
    with pool.connect() as old:
        session = pid(old)
    with pool.connect() as new:
        assert pid(new) == session
        old.close()
        assert new.execute("select 1").fetchone() == (1,)
    assert pool.snapshot().counts["available"] == 1


# --- putconn() --------------------------------------------------------------------------------


def test_putconn_takes_a_lease(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.connect()
    pool.putconn(conn)
    assert conn.closed
    assert pool.snapshot().counts["available"] == 1
    with pytest.raises(ValueError, match="can't return connection to pool 'p'"):
        pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 1


def test_a_lease_knows_its_pool_as_a_connection_does(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.connect()
    assert conn._pool is pool
    conn._pool.putconn(conn)
    assert conn.closed
    assert pool.snapshot().counts["available"] == 1


def test_another_pool_refuses_a_lease(new_pool: Callable[..., Any]) -> None:
    pool, other = new_pool(), new_pool(name="other")
    with pool.connect() as conn:
        with pytest.raises(ValueError, match="it comes from pool 'p'"):
            other.putconn(conn)
        assert conn.execute("select 1").fetchone() == (1,)
    assert pool.snapshot().counts["available"] == 1


def test_the_session_of_a_lease_is_returned_through_the_lease_only(
    new_pool: Callable[..., Any], pid: Callable[[Any], int]
) -> None:
    pool = new_pool()
    conn = pool.getconn()
    pool.putconn(conn)
    with pool.connect() as lease:
        assert pid(lease) == pid(conn)
        lease.execute("select 1")
        with pytest.raises(ValueError, match="can't return connection to pool 'p'"):
            pool.putconn(conn)  # by the borrower before
        assert lease.execute("select 2").fetchone() == (2,)
        assert pool.snapshot().counts["in_use"] == 1
    assert pool.snapshot().counts["available"] == 1


# --- an ended lease ---------------------------------------------------------------------------


def test_an_ended_lease_is_a_closed_connection(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.connect()
    conn.close()
    assert conn.closed
    assert not conn.broken
    with CLOSED:
        conn.execute("select 1")
    with CLOSED:
        conn.cursor()
    with CLOSED:
        conn.commit()
    with CLOSED:
        conn.rollback()
    with CLOSED, conn.transaction():
        pass
    with conn:
        pass
    assert "[BAD]" in repr(conn)


def test_a_cursor_made_before_refuses_when_the_lease_has_ended(
    new_pool: Callable[..., Any],
) -> None:
    pool = new_pool()
    conn = pool.connect()
    cursor = conn.cursor()
    cursor.execute("select 1")
    conn.close()
    with CLOSED:
        cursor.execute("select 1")
    with pool.connection() as new:
        new.execute("create temp table t ()")
        with CLOSED:
            cursor.execute("drop table t")
        assert new.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_an_ended_lease_does_not_change_the_session(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    old = pool.connect()
    old.close()
    with pool.connect() as new:
        old.row_factory = dict_row
        old.note = "late"
        assert not hasattr(new, "note")
        assert new.execute("select 1").fetchone() == (1,)


def test_ended_leases_keep_nothing_of_each_other(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    first, second = pool.connect(), None
    first.close()
    second = pool.connect()
    second.close()
    first.note = "mine"
    assert not hasattr(second, "note")


# --- the driver's features --------------------------------------------------------------------


def test_a_cursor_names_the_lease_as_its_connection(new_pool: Callable[..., Any]) -> None:
    with new_pool().connect() as conn:
        with conn.cursor(row_factory=dict_row) as cursor:
            assert cursor.connection is conn
            assert cursor.execute("select 1 as one").fetchone() == {"one": 1}
        with conn.cursor("named") as named:
            named.execute("select generate_series(1, 3)")
            assert [n for (n,) in named] == [1, 2, 3]


def test_transactions_nest(new_pool: Callable[..., Any]) -> None:
    with new_pool().connect() as conn:
        with conn.transaction():
            conn.execute("create temp table t (n int)")
            with pytest.raises(ZeroDivisionError), conn.transaction():
                conn.execute("insert into t values (1)")
                raise ZeroDivisionError
            with conn.transaction(force_rollback=True):
                conn.execute("insert into t values (2)")
        assert conn.execute("select count(*) from t").fetchone() == (0,)


def test_a_pipeline_works(new_pool: Callable[..., Any]) -> None:
    with new_pool().connect() as conn:
        with conn.pipeline():
            cursors = [conn.execute("select %s::int", [n]) for n in range(5)]
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(5)]


def test_copy_works(new_pool: Callable[..., Any]) -> None:
    with new_pool().connect() as conn:
        conn.execute("create temp table t (n int)")
        with conn.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
            copy.write_row([7])
        assert conn.execute("select n from t").fetchone() == (7,)


def test_notice_handlers_hear_through_a_lease(new_pool: Callable[..., Any]) -> None:
    heard: list[str | None] = []
    with new_pool().connect() as conn:
        conn.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        conn.execute("do $$ begin raise notice 'hear, hear'; end $$")
    assert heard == ["hear, hear"]


@needs_notifies
def test_notify_handlers_and_notifies_hear_through_a_lease(new_pool: Callable[..., Any]) -> None:
    with new_pool(kwargs={"autocommit": True}).connect() as conn:
        conn.execute("listen news")
        conn.execute("select pg_notify('news', 'by generator')")
        found = [notify.payload for notify in conn.notifies(timeout=5.0, stop_after=1)]
        assert found == ["by generator"]

        heard: list[str] = []
        conn.add_notify_handler(lambda notify: heard.append(notify.payload))
        conn.execute("select pg_notify('news', 'by handler')")
        conn.execute("")
        assert heard == ["by handler"]


def test_prepared_statements_and_info_are_the_sessions(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(kwargs={"autocommit": True})
    for count in (1, 1):
        with pool.connect() as conn:
            conn.execute("select 'prepared'", prepare=True)
            row = conn.execute("select count(*) from pg_prepared_statements").fetchone()
            assert row == (count,)
            assert conn.info.backend_pid == conn.pgconn.backend_pid


# --- dropped and broken -----------------------------------------------------------------------


def test_a_dropped_lease_is_warned_of_and_its_slot_replaced(
    new_pool: Callable[..., Any],
    available: Callable[..., None],
    pid: Callable[[Any], int],
    sessions: Any,
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(kwargs=sessions.kwargs)
    conn = pool.connect()
    session = pid(conn)
    with pytest.warns(ResourceWarning) as record:
        del conn
        gc.collect()
    texts = [str(warning.message) for warning in record]
    assert len(texts) == 1
    assert f"pool 'p' (backend {session}), lent to thread 'MainThread'" in texts[0]
    assert "was collected without being given back" in texts[0]
    available(pool, 1)
    assert pool.get_stats()["connections_lost"] == 1
    with pool.connect() as conn:
        assert pid(conn) != session
        eventually(lambda: sessions.pids() == {pid(conn)})


def test_a_lease_dropped_for_a_waiter_serves_it(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
) -> None:
    pool = new_pool()
    conn = pool.connect()
    waiter = spawn(pool.connect, 5.0)
    waiting(pool, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del conn
        gc.collect()
    with waiter.result() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_an_ended_lease_is_dropped_silently(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.connect()
    conn.close()
    del conn
    gc.collect()
    assert pool.snapshot().counts["available"] == 1
    assert pool.get_stats()["connections_lost"] == 0


def test_a_broken_lease_closed_is_replaced(
    new_pool: Callable[..., Any],
    break_connection: Callable[[Any], None],
    available: Callable[..., None],
    pid: Callable[[Any], int],
    log: Any,
) -> None:
    pool = new_pool()
    conn = pool.connect()
    session = pid(conn)
    break_connection(conn)
    conn.close()
    assert conn.closed
    available(pool, 1)
    assert log.kinds() == {"discarding closed": 1}
    assert pool.get_stats()["returns_bad"] == 1
    with pool.connect() as conn:
        assert pid(conn) != session


def test_a_block_over_a_broken_lease_raises_its_error_and_replaces_it(
    new_pool: Callable[..., Any],
    end_session: Callable[[Any], None],
    available: Callable[..., None],
) -> None:
    pool = new_pool()
    with pytest.raises(psycopg.OperationalError), pool.connect() as conn:
        end_session(conn)
        conn.execute("select 1")
    available(pool, 1)
    assert pool.get_stats()["returns_bad"] == 1
