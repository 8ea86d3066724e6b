"""Forked children: their pools work with sessions of their own, and the parent's go on.

What is done in a child is a function that the `fork` fixture calls there; what it returns, or how
it failed, is the test's. Where it matters how a child ends, the test is a program of its own.
"""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import logging
import multiprocessing
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import weakref
from contextlib import suppress

import psycopg
import pytest

import fastpool

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform"),
    # Python 3.12 and newer say it of every fork here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def works(pool):
    """Whether a connection of the pool answers."""
    with pool.connection(timeout=10.0) as conn:
        return conn.execute("select 1").fetchone() == (1,)


@pytest.fixture
def intact(sessions, available):
    """`intact(pool, pids)`: the pool has these sessions still, and each answers."""

    def check(pool, pids):
        available(pool, len(pids))
        assert sessions.pids() >= pids
        conns = [pool.getconn(timeout=5.0) for _ in pids]
        assert {conn.execute("select pg_backend_pid()").fetchone()[0] for conn in conns} == pids
        for conn in conns:
            conn.rollback()
            pool.putconn(conn)

    return check


# --- a child of its own -----------------------------------------------------------------------


def test_a_childs_pool_opens_sessions_of_its_own(new_pool, sessions, fork, intact):
    pool = new_pool(min_size=3, kwargs=sessions.kwargs)
    parents = sessions.pids()

    def child():
        pool.wait(10.0)
        return sessions_of(pool)

    own = fork(child).result()
    assert len(own) == 3
    assert not own & parents
    intact(pool, parents)


def sessions_of(pool):
    conns = [pool.getconn(timeout=5.0) for _ in range(pool.min_size)]
    pids = {conn.execute("select pg_backend_pid()").fetchone()[0] for conn in conns}
    for conn in conns:
        conn.rollback()
        pool.putconn(conn)
    return pids


def test_a_child_that_does_not_use_the_pool_opens_nothing(new_pool, sessions, fork):
    pool = new_pool(min_size=2, kwargs=sessions.kwargs)
    before = sessions.pids()
    gate, opened = os.pipe()

    def child():
        seen = (pool.closed, pool.min_size, pool.max_size, pool.snapshot().counts["available"])
        os.close(opened)
        os.read(gate, 1)
        return seen, len(threading.enumerate())

    running = fork(child)
    os.close(gate)
    assert sessions.pids() == before
    os.close(opened)
    assert running.result() == ((False, 2, 2, 0), 1)


@pytest.mark.parametrize("use", ["getconn", "connection", "connect", "wait", "open", "check"])
def test_any_first_use_opens_the_childs_pool(new_pool, fork, available, use):
    pool = new_pool(min_size=2)

    def child():
        if use in ("getconn", "connect"):
            conn = getattr(pool, use)(timeout=10.0)
            pool.putconn(conn)
        elif use == "connection":
            with pool.connection(timeout=10.0):
                pass
        else:
            getattr(pool, use)()
        available(pool, 2)
        pool._table.verify()
        return True

    assert fork(child).result()


def test_many_threads_of_a_child_open_its_pool_once(new_pool, fork, at_once, available):
    pool = new_pool(min_size=2, max_size=4)

    def child():
        assert at_once(8, lambda: works(pool)) == [True] * 8
        return pool.get_stats()["pool_size"]

    assert 2 <= fork(child).result() <= 4


def test_a_child_may_resize_its_pool_before_it_is_used(new_pool, sessions, fork, available):
    pool = new_pool(min_size=1, kwargs=sessions.kwargs)

    def child():
        pool.resize(3, 5)
        available(pool, 3)
        pool._table.verify()
        return pool.max_size

    assert fork(child).result() == 5
    assert pool.max_size == 1


def test_a_childs_statistics_start_anew(new_pool, fork):
    pool = new_pool()
    for _ in range(5):
        assert works(pool)

    def child():
        before = pool.get_stats()["requests_num"]
        works(pool)
        return before, pool.get_stats()["requests_num"], pool.pop_stats()["connections_num"]

    assert fork(child).result() == (0, 1, 1)
    assert pool.get_stats()["requests_num"] == 5


def test_a_pool_that_was_closed_stays_closed_in_a_child(new_pool, fork):
    pool = new_pool()
    conn = pool.getconn()
    pool.close()

    def child():
        with pytest.raises(fastpool.PoolClosed, match="already closed"):
            pool.getconn()
        with pytest.raises(fastpool.PoolClosed, match="cannot be reused"):
            pool.open()
        pool.putconn(conn)
        pool.close()
        return pool.closed

    assert fork(child).result() is True
    assert conn.execute("select 1").fetchone() == (1,)
    pool.putconn(conn)


def test_a_pool_that_was_not_open_is_opened_in_a_child_as_usual(new_pool, fork):
    pool = new_pool(open=False)

    def child():
        with pytest.raises(fastpool.PoolClosed, match="not open yet"):
            pool.getconn()
        with pool:
            return works(pool)

    assert fork(child).result()
    assert pool.closed


def test_grandchildren_have_sessions_of_their_own(new_pool, sessions, fork, intact, script):
    pool = new_pool(min_size=2, kwargs=sessions.kwargs)
    parents = sessions.pids()

    def child():
        mine = sessions_of(pool)
        reader, writer = os.pipe()
        grandchild = os.fork()
        if grandchild == 0:
            try:
                os.write(writer, repr(sessions_of(pool)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        theirs = eval(os.read(reader, 1000))
        os.waitpid(grandchild, 0)
        return mine, theirs, sessions_of(pool)

    mine, theirs, again = fork(child).result()
    assert mine == again
    assert len(mine | theirs | parents) == 6
    intact(pool, parents)


def test_a_null_pool_lends_in_a_child(dsn, fork):
    with fastpool.NullConnectionPool(dsn, max_size=2, open=True) as pool:
        with pool.connection() as conn:

            def child():
                first, second = pool.getconn(timeout=5.0), pool.getconn(timeout=5.0)
                pids = {c.info.backend_pid for c in (first, second)}
                pool.putconn(first)
                pool.putconn(second)
                conn.close()
                return len(pids - {conn.info.backend_pid}), pool.get_stats()["pool_size"]

            assert fork(child).result() == (2, 0)
            assert conn.execute("select 1").fetchone() == (1,)


# --- the parent's sessions --------------------------------------------------------------------


def close_the_pool(pool, lent):
    pool.close()


def use_and_close_the_pool(pool, lent):
    works(pool)
    pool.close()


def close_the_lent(pool, lent):
    lent.close()


def use_the_lent(pool, lent):
    with pytest.raises(psycopg.OperationalError):
        lent.execute("select 1")
    assert lent.broken


def return_the_lent(pool, lent):
    pool.putconn(lent)
    pool.putconn(lent)


def finish_all_there_is(pool, lent):
    for thing in gc.get_objects():
        if isinstance(thing, psycopg.Connection) and hasattr(thing, "_pool"):
            thing.pgconn.finish()


def collect_everything(pool, lent):
    del lent
    gc.collect()
    pool.drain()
    pool.check()


@pytest.mark.parametrize(
    "act",
    [
        close_the_pool,
        use_and_close_the_pool,
        close_the_lent,
        use_the_lent,
        return_the_lent,
        finish_all_there_is,
        collect_everything,
    ],
)
def test_whatever_a_child_does_the_parents_sessions_go_on(
    new_pool, sessions, fork, intact, act, pid
):
    pool = new_pool(min_size=3, kwargs=sessions.kwargs)
    parents = sessions.pids()
    with pool.connection() as lent:
        assert fork(lambda: act(pool, lent)).result() is None
        assert lent.execute("select pg_backend_pid()").fetchone() == (pid(lent),)
    intact(pool, parents)


@pytest.fixture
def tls_dsn(server, tmp_path, spawn):
    """A connection string that leads to the server through TLS, which ends in this process."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-new", "-x509", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-newkey", "rsa:2048", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=20.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    address = f"{server.socket_dir}/.s.PGSQL.{server.port}"

    def forward(client):
        with client, socket.socket(socket.AF_UNIX) as there:
            client.recv(8)  # "do you speak TLS?"
            client.sendall(b"S")
            there.connect(address)
            with suppress(OSError), context.wrap_socket(client, server_side=True) as here:
                data = b"the first"
                while data:
                    # What is decrypted already, select() does not see.
                    ready = [here] if here.pending() else select.select([here, there], [], [])[0]
                    for source, sink in ((here, there), (there, here)):
                        if source in ready and data:
                            data = source.recv(65536)
                            sink.sendall(data)

    def accept():
        with suppress(OSError):
            while True:
                spawn(forward, listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        spawn(accept)
        host, port = listener.getsockname()
        yield psycopg.conninfo.make_conninfo(
            server.dsn, host=host, port=port, sslmode="require", gssencmode="disable"
        )
        listener.shutdown(socket.SHUT_RDWR)


def test_no_farewell_by_tls_reaches_the_parents_server(tls_dsn, new_pool, fork, pid):
    pool = new_pool(tls_dsn, min_size=3)
    with pool.connection() as lent:
        assert lent.pgconn.ssl_in_use
        parents = {pid(conn) for conn in [lent, *pool._pool]}

        def child():
            finish_all_there_is(pool, lent)
            with pool.connection() as conn:
                assert conn.pgconn.ssl_in_use
            pool.close()

        assert fork(child).result() is None
        assert lent.execute("select 1").fetchone() == (1,)
    assert sessions_of(pool) == parents


def inodes():
    """The sockets that this process has."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")
def test_a_child_keeps_no_copy_of_the_parents_sockets(new_pool, fork):
    pool = new_pool(min_size=3)
    with pool.connection() as lent:
        shared = set()
        for conn in [lent, *pool._pool]:
            shared.add(os.readlink(f"/proc/self/fd/{conn.fileno()}"))
        assert len(shared) == 3
        assert not fork(inodes).result() & shared


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")
def test_a_child_is_cut_off_also_where_no_descriptor_is_left(script, dsn):
    seen = script(
        """
import os, resource, sys, threading
import fastpool
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
pool = fastpool.ConnectionPool(sys.argv[1], min_size=2, open=True)
pool.wait()
conns = [pool.getconn(), pool.getconn()]
shared = {os.readlink(f"/proc/self/fd/{conn.fileno()}") for conn in conns}
numbers = [conn.fileno() for conn in conns]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
child = os.fork()
if child == 0:
    left = {os.readlink(f"/proc/self/fd/{number}") for number in numbers}
    for conn in conns:
        conn.pgconn.finish()
    os._exit(len(left & shared))
_, status = os.waitpid(child, 0)
for number in held:
    os.close(number)
assert status == 0, status
for conn in conns:
    assert conn.execute("select 1").fetchone() == (1,)
    conn.rollback()
    pool.putconn(conn)
pool.close()
""",
        dsn,
    )
    assert (seen.returncode, seen.stderr) == (0, "")


# --- what was lent ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"close_returns": True}, {"reset": lambda conn: None}])
def test_giving_back_in_a_child_is_harmless(new_pool, fork, options):
    pool = new_pool(min_size=3, **options)
    block, lease, conn = pool.connection(), pool.connect(), pool.getconn()
    in_block = block.__enter__()

    def give_back():
        block.__exit__(None, None, None)
        lease.close()
        lease.close()
        pool.putconn(conn)

    def child():
        assert works(pool)  # the slots of those may be lent anew
        give_back()
        pool.putconn(conn)
        assert lease.closed
        return pool.get_stats()["returns_bad"]

    assert fork(child).result() == 0
    for mine in (in_block, lease, conn):
        assert mine.execute("select 1").fetchone() == (1,)
        mine.rollback()
    give_back()
    with pytest.raises(ValueError, match="can't return"):
        pool.putconn(conn)


PROGRAM = """
import atexit, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import psycopg, fastpool

way, leave = sys.argv[2:4]
pool = fastpool.ConnectionPool(sys.argv[1], min_size=2, open=True, name="p")
pool.wait()
main = os.getpid()
atexit.register(pool.close)

def fork():
    child = os.fork()
    if child == 0 and leave == "exit":
        sys.exit(3)
    if child == 0 and leave == "raise":
        raise SystemExit(3)
    if child == 0 and leave == "error":
        sys.excepthook = lambda *raised: None
        raise KeyError("on purpose")
    return child

if way == "connection":
    with pool.connection() as conn:
        child = fork()
elif way == "connect":
    with pool.connect() as conn:
        child = fork()
elif way == "transaction":
    with pool.connection() as conn:
        with conn.transaction():
            conn.execute("select 1")
            child = fork()
            if child == 0:
                sys.exit(3)
elif way == "getconn":
    conn = pool.getconn()
    try:
        child = fork()
    finally:
        pool.putconn(conn)
elif way == "generator":
    def lend():
        with pool.connection() as conn:
            yield conn
    lending = lend()
    conn = next(lending)
    child = fork()
    lending.close()
elif way == "null":
    with fastpool.NullConnectionPool(sys.argv[1], open=True) as other, other.connection() as conn:
        child = fork()
if os.getpid() != main:
    with pool.connection(timeout=10) as mine:
        mine.execute("select 1")
    sys.exit(3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == (1 if leave == "error" else 3), status
conns = [pool.getconn(timeout=5), pool.getconn(timeout=5)]
for conn in conns:
    assert conn.execute("select 1").fetchone() == (1,)
    conn.rollback()
    pool.putconn(conn)
assert pool.get_stats()["connections_num"] == 2
"""


@pytest.mark.parametrize("leave", ["exit", "error", "go on"])
@pytest.mark.parametrize("way", ["connection", "connect", "getconn", "generator", "null"])
def test_a_child_forked_in_a_block_ends_as_it_wants(script, dsn, way, leave):
    seen = script(PROGRAM, dsn, way, leave)
    assert (seen.returncode, seen.stderr) == (0, "")


def test_a_child_forked_in_a_transaction_may_exit(script, dsn):
    # The driver says that it could not roll back.
    seen = script(PROGRAM, dsn, "transaction", "exit")
    assert seen.returncode == 0, seen.stderr


def test_a_transaction_can_be_committed_by_the_parent_only(new_pool, admin, fork):
    admin.execute("create table if not exists forked (who text)")
    admin.execute("truncate forked")
    pool = new_pool()
    block = pool.connection()
    conn = block.__enter__()
    conn.execute("insert into forked values ('parent')")

    def child():
        with pytest.raises(psycopg.OperationalError):
            block.__exit__(None, None, None)
        return works(pool)

    assert fork(child).result()
    assert admin.execute("select count(*) from forked").fetchone() == (0,)
    block.__exit__(None, None, None)
    assert admin.execute("select who from forked").fetchall() == [("parent",)]
    admin.execute("drop table forked")


def test_another_pools_connection_is_refused_in_a_child_too(new_pool, fork):
    pool, other = new_pool(), new_pool(name="other")
    conn = pool.getconn()

    def child():
        with pytest.raises(ValueError, match="comes from pool 'p'"):
            other.putconn(conn)

    assert fork(child).result() is None
    pool.putconn(conn)


def test_what_was_lent_to_the_parent_is_no_leak_of_the_childs(new_pool, fork, at_rest):
    pool = new_pool(min_size=2)
    held = [pool.getconn()]

    def child():
        held.clear()  # a ResourceWarning would be an error
        gc.collect()
        assert works(pool)
        at_rest(pool)
        return pool.get_stats()["connections_lost"]

    assert fork(child).result() == 0
    pool.putconn(held.pop())


# --- what the parent was doing ----------------------------------------------------------------


class Written(logging.Handler):
    """Writes lines to nowhere; not through a file object, whose own lock a fork leaves held."""

    def __init__(self):
        super().__init__(logging.INFO)
        self._descriptor = os.open(os.devnull, os.O_WRONLY)

    def emit(self, record):
        os.write(self._descriptor, self.format(record).encode())

    def close(self):
        os.close(self._descriptor)
        super().close()


@pytest.fixture
def busy_log():
    """The pools' logger, writing every line."""
    logger = logging.getLogger("psycopg.pool")
    handler = Written()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    handler.close()


@pytest.mark.parametrize("logs", [False, True])
def test_children_work_that_are_forked_while_threads_check_out_at_full_speed(
    new_pool, fork, spawn, busy_log, logs
):
    """A child may find each queue and lock of its parent's, and of logging, in any state."""
    # Without a GIL nothing connects while it forks: a thread may be given the lock of an object,
    # say of a dict of psycopg's, that is halted for the fork already, and is not in the child.
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    pool = new_pool(
        min_size=3 if free_threaded else 2,
        max_size=3,
        check=lambda conn: None,
        reset=lambda conn: None,
    )
    plain = new_pool(min_size=2 if free_threaded else 1, max_size=2, name="plain")
    ending = threading.Event()
    errors = []
    if logs and free_threaded:
        pytest.skip("without a GIL a child can't log where its parent did: CPython's own locks")
    busy_log.setLevel(logging.INFO if logs else logging.ERROR)

    def borrow(pool):
        while not ending.is_set():
            try:
                with pool.connection(timeout=10.0):
                    pass
            except Exception as error:
                errors.append(error)
                return

    calls = [spawn(borrow, one) for one in (pool, plain) for _ in range(3)]
    try:
        for number in range(100):
            # Each costs a connect, and a connect costs more than a fork.
            uses = [works] if number % 8 == 0 else []

            def child(uses=uses):
                busy_log.info("a child")
                return [use(one) for use in uses for one in (pool, plain)]

            assert fork(child).result() == [True, True][: 2 * len(uses)]
    finally:
        ending.set()
    for call in calls:
        call.result()
    assert not errors
    assert works(pool)
    assert works(plain)


def test_a_child_forked_in_the_middle_of_a_connect_connects_itself(
    new_pool, network, spawn, eventually, fork
):
    pool = new_pool(min_size=1, max_size=2, connection_class=network.connection_class)
    conn = pool.getconn()
    network.hold()
    second = spawn(lambda: works(pool))
    eventually(lambda: network.in_flight, what="a connect in flight")

    def child():
        network._held = False
        return works(pool), pool.get_stats()["pool_size"]

    worked, size = fork(child).result()
    assert worked
    assert size <= 2
    network.release()
    assert second.result()
    pool.putconn(conn)


def test_a_child_forked_while_the_server_is_down_tries_anew(
    new_pool, network, quick_backoff, eventually, fork
):
    network.down()
    pool = new_pool(min_size=2, open=False, connection_class=network.connection_class)
    pool.open()
    eventually(lambda: len(network.attempts) > 3, what="attempts")

    def child():
        network.up()
        pool.wait(5.0)
        return works(pool)

    assert fork(child).result()
    network.up()
    pool.wait(5.0)


def test_a_child_forked_while_others_wait_serves_itself(new_pool, spawn, waiting, fork, at_rest):
    pool = new_pool()
    conn = pool.getconn()
    waiter = spawn(lambda: works(pool))
    waiting(pool, 1)

    def child():
        assert pool.snapshot().waiting == 0
        assert works(pool)
        at_rest(pool)

    assert fork(child).result() is None
    pool.putconn(conn)
    assert waiter.result()


def test_a_child_forked_while_a_connection_is_reset_has_its_own(new_pool, spawn, fork):
    entered, leave = threading.Event(), threading.Event()

    def reset(conn):
        entered.set()
        assert leave.wait(10.0)

    pool = new_pool(reset=reset)
    pool.putconn(pool.getconn())
    assert entered.wait(5.0)

    def child():
        leave.set()
        return works(pool)

    assert fork(child).result()
    leave.set()
    assert works(pool)


def test_timers_run_in_a_child(new_pool, fork, eventually):
    """The housekeeper's thread does not live on in a child; another is started there."""
    pool = new_pool(min_size=1, max_size=2, max_idle=0.05)

    def child():
        first, second = pool.getconn(timeout=5.0), pool.getconn(timeout=5.0)
        pool.putconn(first)
        pool.putconn(second)
        eventually(lambda: pool.get_stats()["pool_size"] == 1, what="the pool shrunk")
        return True

    assert fork(child).result()


def test_dropped_pools_are_forgotten(new_pool, fork):
    from fastpool import forks

    pool = fastpool.ConnectionPool("", open=False)
    assert pool in [reference() for reference in list(forks._pools.values())]
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert None not in [reference() for reference in list(forks._pools.values())]


# --- those who fork ---------------------------------------------------------------------------

shared_pool = None


def use_shared_pool(_=None):
    assert works(shared_pool)
    with shared_pool.connection() as conn:
        return conn.info.backend_pid


@pytest.fixture
def shared(new_pool, sessions):
    """The pool that functions of this module use, in this process and in others."""
    global shared_pool
    shared_pool = new_pool(min_size=2, kwargs=sessions.kwargs)
    yield shared_pool
    shared_pool = None


def test_processes_of_multiprocessing_use_the_pool(shared, sessions, intact):
    parents = sessions.pids()
    context = multiprocessing.get_context("fork")
    with shared.connection() as lent:
        processes = [context.Process(target=use_shared_pool) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(20.0)
            assert process.exitcode == 0
        assert lent.execute("select 1").fetchone() == (1,)
    intact(shared, parents)


def test_a_pool_of_processes_uses_the_pool(shared, sessions, intact):
    parents = sessions.pids()
    with multiprocessing.get_context("fork").Pool(2) as processes:
        pids = set(processes.map_async(use_shared_pool, range(20)).get(20.0))
        assert not pids & parents
        processes.close()
        processes.join()
    intact(shared, parents)


def test_an_executor_of_processes_uses_the_pool(shared, sessions, intact):
    parents = sessions.pids()
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        pids = set(executor.map(use_shared_pool, range(20), timeout=20.0))
    assert not pids & parents
    intact(shared, parents)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_is_not_sent_to_another_process(new_pool, method):
    pool = new_pool()
    process = multiprocessing.get_context(method).Process(target=print, args=(pool,))
    with pytest.raises(TypeError, match="a connection pool can't be pickled"):
        process.start()


def test_a_subprocess_leaves_the_pool_alone(new_pool, sessions, intact):
    pool = new_pool(min_size=2, kwargs=sessions.kwargs)
    parents = sessions.pids()
    with pool.connection() as lent:
        for options in ({}, {"preexec_fn": os.getpid}):
            subprocess.run(["true"], check=True, timeout=20.0, **options)
        assert lent.execute("select 1").fetchone() == (1,)
    intact(pool, parents)


# --- a pre-fork server ------------------------------------------------------------------------

APPLICATION = """
import os
import fastpool

pool = fastpool.ConnectionPool(os.environ["TEST_DSN"], min_size=1, max_size=3, open=True)
pool.wait()
with pool.connection() as conn:
    master = (os.getpid(), conn.info.backend_pid)

def application(environ, start_response):
    with pool.connection(timeout=10) as conn:
        backend = conn.execute("select pg_backend_pid()").fetchone()[0]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {backend} {master[0]} {master[1]}".encode()]
"""


def test_gunicorns_workers_share_a_preloaded_application(dsn, tmp_path, admin, eventually):
    gunicorn = shutil.which("gunicorn", path=os.path.dirname(sys.executable))
    if gunicorn is None:
        pytest.skip("gunicorn is not installed")
    (tmp_path / "application.py").write_text(APPLICATION)
    address = tmp_path / "socket"
    command = [gunicorn, "--preload", "--workers", "3", "--threads", "2", "--bind"]
    command += [f"unix:{address}", "application:application"]
    command += ["--error-logfile", str(tmp_path / "log")]
    server = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "TEST_DSN": dsn})

    def listens():  # the socket is there before its owner listens
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(address)) == 0

    def get():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0)
            connection.connect(str(address))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"200 OK" in head, answer
        return tuple(int(word) for word in body.split())

    try:
        eventually(listens, timeout=20.0, what="gunicorn's socket")
        seen = set()
        for _ in itertools.count():
            seen.add(get())
            if len({worker for worker, *_ in seen}) == 3 or len(seen) > 100:
                break
        workers = {worker for worker, *_ in seen}
        [(master, masters)] = {tuple(row[2:]) for row in seen}
        assert len(workers) == 3
        assert master not in workers
        assert masters not in {backend for _, backend, *_ in seen}
        # No two workers on one session.
        assert len({backend for _, backend, *_ in seen}) == len({row[:2] for row in seen})
        alive = "select pid from pg_stat_activity where pid = %s"
        assert admin.execute(alive, [masters]).fetchone()
    finally:
        server.terminate()
        server.wait(20.0)
        print((tmp_path / "log").read_text())
