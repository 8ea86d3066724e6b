"""`role=`: a pool for servers that take writes, or for such that refuse them, through a failover.

Real servers: a primary and its standby, which is promoted. Every test runs on the pool for threads
and on the one for tasks.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from shared.both import available, done, entered, scalar, until

import fastpool
from fastpool import roles

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("package", ["fastpool"], indirect=True),
]

READ_ONLY = "set default_transaction_read_only = on"


async def full(pool):
    await available(pool, pool.min_size)


def pid_of(conn):
    return conn.pgconn.backend_pid


def pids(pool):
    return {slot.backend_pid for slot in pool.snapshot().slots if slot.backend_pid is not None}


async def use(pool, statement="select 1", timeout=5.0):
    """Have a connection of the pool run a statement; return its session."""
    conn = await done(pool.getconn(timeout=timeout))
    try:
        await done(conn.execute(statement))
        await done(conn.commit())
        return pid_of(conn)
    finally:
        await done(pool.putconn(conn))


# --- what is asked of libpq -------------------------------------------------------------------


@pytest.fixture
def asked(kind):
    """A connection class that notes what it is opened with, and passes it on."""
    base = getattr(psycopg, kind + "Connection")
    noted = []

    class Noting(base):
        @classmethod
        def connect(cls, conninfo, **kwargs):
            noted.append({**conninfo_to_dict(conninfo), **kwargs})
            return super().connect(conninfo, **kwargs)

    return SimpleNamespace(connection_class=Noting, noted=noted)


async def test_without_a_role_nothing_is_asked_of_the_server(open_pool, asked):
    await open_pool(connection_class=asked.connection_class)
    assert "target_session_attrs" not in asked.noted[0]


async def test_a_role_is_asked_of_the_server(open_pool, asked):
    pool = await open_pool(connection_class=asked.connection_class, role="read-write")
    assert pool.role == "read-write"
    assert asked.noted[0]["target_session_attrs"] == "read-write"


@pytest.mark.parametrize("place", ["kwargs", "conninfo", "environment"])
async def test_the_users_own_choice_of_servers_goes_first(
    open_pool, asked, place, dsn, monkeypatch
):
    options = {}
    if place == "kwargs":
        options["kwargs"] = {"target_session_attrs": "primary"}
    elif place == "environment":
        monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    pool = await open_pool(connection_class=asked.connection_class, role="read-write", **options)
    if place == "conninfo":
        pool.conninfo = make_conninfo(dsn, target_session_attrs="primary")
        asked.noted.clear()
        await done(pool.drain())
        await full(pool)
    expected = None if place == "environment" else "primary"
    assert asked.noted[0].get("target_session_attrs") == expected


# --- a session that changes -------------------------------------------------------------------


async def test_a_connection_that_became_read_only_is_replaced_with_all_others(open_pool, caplog):
    pool = await open_pool(min_size=3, max_size=3, role="read-write")
    before = pids(pool)
    changed = await use(pool, READ_ONLY)
    await until(lambda: not pids(pool) & before, "no connection of before")
    await full(pool)
    assert "the session is read-only, and the pool's role is read-write: <psycopg" in caplog.text
    assert changed in before


async def test_no_idle_connection_is_lent_after_one_became_read_only(open_pool):
    pool = await open_pool(min_size=2, max_size=2, role="read-write")
    before = pids(pool)
    await use(pool, READ_ONLY)
    assert await use(pool) not in before


async def test_a_lent_connection_is_replaced_when_it_comes_back_after_that(open_pool):
    pool = await open_pool(min_size=2, max_size=2, role="read-write")
    conn = await done(pool.getconn())
    lent = pid_of(conn)
    await use(pool, READ_ONLY)
    await done(pool.putconn(conn))
    await full(pool)
    assert lent not in pids(pool)


async def test_a_program_that_says_so_each_time_costs_only_its_own_connection(open_pool):
    pool = await open_pool(min_size=3, max_size=3, role="read-write")
    before = pids(pool)
    await use(pool, READ_ONLY)
    await until(lambda: not pids(pool) & before, "no connection of before")
    await full(pool)
    after = pids(pool)
    changed = await use(pool, READ_ONLY)
    await full(pool)
    assert after - pids(pool) == {changed}


async def test_a_server_that_changes_just_after_all_were_replaced_is_left_all_the_same(
    own_server, connect_to
):
    server = own_server()
    pool = await connect_to(server.dsn, role="read-write", min_size=3)
    before = pids(pool)
    await use(pool, READ_ONLY)
    await until(lambda: not pids(pool) & before, "no connection of before")
    await full(pool)
    before = pids(pool)
    command(server, "alter system set default_transaction_read_only = on")
    command(server, "select pg_reload_conf()")
    await until(lambda: ask(server, "show default_transaction_read_only") == "on", "the setting")
    await use(pool)
    await until(lambda: not pids(pool) & before, "no connection of before")


async def test_a_change_that_is_rolled_back_or_reset_is_none(open_pool, kind):
    async def reset_async(conn):
        await conn.execute("reset all")
        await conn.commit()

    def reset(conn):
        conn.execute("reset all")
        conn.commit()

    pool = await open_pool(role="read-write")
    before = pids(pool)
    conn = await done(pool.getconn())
    await done(conn.execute(READ_ONLY))
    await done(pool.putconn(conn))
    assert pids(pool) == before
    pool = await open_pool(role="read-write", reset=reset_async if kind else reset)
    before = pids(pool)
    await use(pool, READ_ONLY)
    await full(pool)
    assert pids(pool) == before


async def test_a_connection_that_takes_writes_is_none_for_a_read_only_pool(open_pool):
    options = "-c default_transaction_read_only=on"
    pool = await open_pool(role="read-only", kwargs={"options": options})
    assert await use(pool) == await use(pool)
    changed = await use(pool, "set default_transaction_read_only = off")
    await full(pool)
    assert changed not in pids(pool)


async def test_without_a_role_nothing_is_replaced(open_pool):
    pool = await open_pool()
    changed = await use(pool, READ_ONLY)
    assert pids(pool) == {changed}


async def test_nothing_is_concluded_from_a_server_that_reports_nothing(open_pool, monkeypatch):
    monkeypatch.setattr(roles, "_REPORTED", (b"in_cold_standby", b"default_transaction_read_only"))
    pool = await open_pool(role="read-write")
    changed = await use(pool, READ_ONLY)
    assert pids(pool) == {changed}


@pytest.mark.parametrize("way", ["connect", "connection", "close_returns"])
async def test_each_way_of_giving_back_notices_a_change(open_pool, way):
    pool = await open_pool(role="read-write", close_returns=way == "close_returns")
    if way == "close_returns":
        conn = await done(pool.getconn())
        await done(conn.execute(READ_ONLY))
        await done(conn.commit())
        changed = pid_of(conn)
        await done(conn.close())
    else:
        async with entered(getattr(pool, way)()) as conn:
            await done(conn.execute(READ_ONLY))
            changed = pid_of(conn)
    await until(lambda: changed not in pids(pool), "another connection")


async def test_a_check_notices_a_change_before_anybody_meets_it(open_pool, pool_class):
    pool = await open_pool(min_size=1, role="read-write", check=pool_class.check_connection)
    conn = await done(pool.getconn())
    changed = pid_of(conn)
    await done(conn.execute(READ_ONLY))
    await done(conn.commit())
    role, pool.role = pool.role, None  # nobody looked at its return
    await done(pool.putconn(conn))
    pool.role = role
    assert await use(pool) != changed


async def test_a_null_pool_hands_on_no_connection_that_changed(open_pool, kind):
    pool = await open_pool("NullConnectionPool", max_size=1, role="read-write")
    conn = await done(pool.getconn())
    changed = pid_of(conn)
    await done(conn.execute(READ_ONLY))
    await done(conn.commit())
    waiting = pool.getconn() if kind else asyncio.to_thread(pool.getconn)
    request = asyncio.create_task(waiting)
    await until(lambda: pool.snapshot().waiting == 1, "a request waiting")
    await done(pool.putconn(conn))
    conn = await request
    assert pid_of(conn) != changed
    await done(pool.putconn(conn))


# --- connecting to the wrong kind of server ---------------------------------------------------


@pytest.mark.parametrize("who_finds_out", ["libpq", "the pool"])
async def test_a_connect_that_finds_the_wrong_kind_of_server_fails(
    open_pool, admin, sessions_of, who_finds_out, pool_class, dsn
):
    """A second look for who tells libpq something else."""
    kwargs = {"application_name": "wrong-kind"}
    if who_finds_out == "the pool":
        kwargs["target_session_attrs"] = "any"
    pool = pool_class(dsn, min_size=2, open=False, role="read-only", kwargs=kwargs, name="p")
    await done(pool.open())
    try:
        with pytest.raises(fastpool.PoolTimeout, match="read-only") as caught:
            await done(pool.getconn(timeout=0.5))
        assert "the last connection attempt failed with OperationalError" in str(caught.value)
        await until(lambda: not sessions_of("wrong-kind"), "no session left open")
        assert pool.get_stats()["connections_errors"] >= 1
    finally:
        await done(pool.close())


@pytest.fixture
def sessions_of(admin):
    def count(name):
        query = "select count(*) from pg_stat_activity where application_name = %s"
        return admin.execute(query, [name]).fetchone()[0]

    return count


async def test_the_first_host_may_be_dead(open_pool, dsn, tmp_path, kind):
    """Without a role too: the driver goes through the hosts."""
    known = conninfo_to_dict(dsn)
    hosts = {"host": f"{tmp_path},{known['host']}", "port": f"1,{known['port']}"}
    for role in (None, "read-write"):
        pool = await open_pool(min_size=2, max_size=2, role=role, kwargs=hosts)
        assert await use(pool)
        await done(pool.close())


# --- servers that fail over -------------------------------------------------------------------


def ask(server, query):
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        return conn.execute(query).fetchone()[0]


def command(server, statement):
    options = "-c default_transaction_read_only=off"
    with psycopg.connect(server.dsn, autocommit=True, options=options) as conn:
        conn.execute(statement)


@pytest.fixture
def cluster(own_server):
    """A primary and its standby, and a connection string with both hosts, the primary's first."""
    primary = own_server()
    if not primary.bindir.joinpath("pg_basebackup").exists():
        pytest.skip("no pg_basebackup beside this server")
    copy = primary.home / "standby"
    primary.run("pg_basebackup", "-D", copy, "-R", "-N", "-c", "fast", "-d", primary.dsn)
    standby = own_server({"fsync": False}, data=copy)
    hosts = ",".join(str(server.socket_dir) for server in (primary, standby))
    ports = ",".join(str(server.port) for server in (primary, standby))
    return SimpleNamespace(
        primary=primary,
        standby=standby,
        dsn=make_conninfo(primary.dsn, host=hosts, port=ports),
    )


@pytest.fixture
async def connect_to(anyio_backend, pool_class):
    """`await connect_to(dsn, **options)` opens a pool of two, and waits until it is full."""
    pools = []

    async def connect(dsn, **options):
        pool = pool_class(dsn, **{"min_size": 2, "open": False, "name": "p", **options})
        pools.append(pool)
        await done(pool.open(wait=True, timeout=10.0))
        return pool

    yield connect
    for pool in pools:
        await done(pool.close(timeout=2.0))


async def server_of(pool, timeout=5.0):
    """The port that a connection of the pool leads to, and whether that server takes writes."""
    conn = await done(pool.getconn(timeout=timeout))
    try:
        port = int(await scalar(conn, "show port"))
        return port, not await scalar(conn, "select pg_is_in_recovery()")
    finally:
        await done(conn.rollback())
        await done(pool.putconn(conn))


async def test_each_role_finds_its_server(cluster, connect_to):
    writers = await connect_to(cluster.dsn, role="read-write")
    readers = await connect_to(cluster.dsn, role="read-only")
    either = await connect_to(cluster.dsn)
    assert await server_of(writers) == (cluster.primary.port, True)
    assert await server_of(readers) == (cluster.standby.port, False)
    assert await server_of(either) == (cluster.primary.port, True)


async def test_a_pool_for_writers_follows_the_primary(cluster, connect_to):
    pool = await connect_to(cluster.dsn, role="read-write")
    assert await server_of(pool) == (cluster.primary.port, True)
    cluster.primary.stop("immediate", keep=True)
    assert ask(cluster.standby, "select pg_promote()")
    began = time.monotonic()
    while True:
        try:
            found = await server_of(pool, timeout=5.0)
            break
        except psycopg.OperationalError:  # a connection that nobody has noticed yet to be dead
            assert time.monotonic() < began + 10.0
    assert found == (cluster.standby.port, True)
    assert time.monotonic() < began + 5.0
    await full(pool)
    conn = await done(pool.getconn())
    await done(conn.execute("create table written (here int)"))
    await done(conn.commit())
    await done(pool.putconn(conn))


async def test_a_pool_for_readers_leaves_a_standby_that_was_promoted(cluster, connect_to):
    """Its sessions live on; with their next answer the server says that it is in charge now."""
    pool = await connect_to(cluster.dsn, role="read-only")
    before = pids(pool)
    assert await server_of(pool) == (cluster.standby.port, False)
    assert ask(cluster.standby, "select pg_promote()")
    # The first to come back brings the news, and none of before is lent again.
    assert (await server_of(pool))[1]
    await until(lambda: not pids(pool) & before, "no connection of before")
    with pytest.raises(fastpool.PoolTimeout, match="last connection attempt failed.*not read-only"):
        await done(pool.getconn(timeout=1.5))
    # A server that takes no writes, for whatever reason, will do.
    command(cluster.primary, "alter system set default_transaction_read_only = on")
    command(cluster.primary, "select pg_reload_conf()")
    assert (await server_of(pool, timeout=5.0))[0] == cluster.primary.port


async def test_a_pool_for_writers_leaves_a_server_that_was_made_read_only(own_server, connect_to):
    server = own_server()
    pool = await connect_to(server.dsn, role="read-write")
    before = pids(pool)
    command(server, "alter system set default_transaction_read_only = on")
    command(server, "select pg_reload_conf()")

    def reloaded():
        return ask(server, "show default_transaction_read_only") == "on"

    await until(reloaded, "the setting")
    used = await use(pool)  # this one brings the news
    assert used in before
    await until(lambda: not pids(pool), "no connection open")
    with pytest.raises(fastpool.PoolTimeout, match="read-only"):
        await done(pool.getconn(timeout=0.3))
    command(server, "alter system reset default_transaction_read_only")
    command(server, "select pg_reload_conf()")
    assert await server_of(pool) == (server.port, True)
