"""What the doctor finds out about a PostgreSQL: how it is reached, and what its settings mean.

Owns: one connection, and the deadlines of all that it does there. Refuses: to change anything on
the server, and to let a password into what it says.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from fastpool.guard import Guard
from fastpool.redaction import Redactor

from .finding import ERROR, NOTE, WARNING, Finding

CONNECT_TIMEOUT = 10  # seconds for each host, where the user has not said
ANSWER_TIMEOUT = 15.0  # seconds for all questions together
DEFAULT_SIZE = 4  # connections of a pool whose size nobody chose
REPORTS_ROLE = 14_00_00  # the version that reports a change of its role by itself
LONG_KEEPALIVE = 300  # seconds

_SETTINGS = (
    "default_transaction_read_only",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "max_connections",
    "reserved_connections",
    "statement_timeout",
    "superuser_reserved_connections",
    "tcp_keepalives_idle",
    "transaction_timeout",
)

_QUESTION = """
SELECT pg_catalog.pg_backend_pid() AS pid,
       pg_catalog.pg_is_in_recovery() AS standby,
       r.rolsuper AS superuser,
       r.rolconnlimit AS role_limit,
       d.datconnlimit AS database_limit,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity a
         WHERE a.usesysid = r.oid) AS role_sessions,
       (SELECT s.numbackends FROM pg_catalog.pg_stat_database s
         WHERE s.datid = d.oid) AS database_sessions,
       (SELECT sum(s.numbackends) FROM pg_catalog.pg_stat_database s)::bigint AS sessions
  FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
 WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()
"""


class Unreachable(RuntimeError):  # noqa: N818  a state of the server, not a mistake
    """No connection, or no answer on it. The message holds no password."""


def given_by_environment() -> bool:
    """Tell whether libpq's own variables name a server, so that an empty DSN leads to it."""
    return any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"))


def look(dsn: str, size: int | None) -> Iterator[Finding]:
    """Yield what there is to say about the server of *dsn* for pools of *size* connections.

    *size* is what all pools together may open; None stands for one pool of the default size.
    Blocks for up to CONNECT_TIMEOUT for each host, and ANSWER_TIMEOUT after that. Raises
    Unreachable.
    """
    try:
        with psycopg.connect(dsn, autocommit=True, **_options(dsn)) as conn:
            facts = _ask_in_time(conn)
            yield from _judge(conn, facts, size)
    except psycopg.Error as error:
        raise Unreachable(_without_passwords(str(error).strip(), dsn)) from None


def _options(dsn: str) -> dict[str, Any]:
    """Return connect()'s arguments: what the user has said is left alone."""
    given = conninfo_to_dict(dsn)
    # A pooler in transaction mode may have no place for a prepared statement.
    options: dict[str, Any] = {"prepare_threshold": None}
    if "application_name" not in given and "PGAPPNAME" not in os.environ:
        options["application_name"] = "fastpool doctor"
    if "connect_timeout" not in given and "PGCONNECT_TIMEOUT" not in os.environ:
        options["connect_timeout"] = CONNECT_TIMEOUT
    return options


def _ask_in_time(conn: psycopg.Connection[Any]) -> _Facts:
    guard = Guard(conn, 0, lambda who: None)
    timer = threading.Timer(ANSWER_TIMEOUT, guard.fire)
    timer.daemon = True
    timer.start()
    try:
        return _ask(conn)
    except psycopg.Error:
        if not guard.end():  # an error of the server's own
            raise
        where, limit = _address(conn), f"{ANSWER_TIMEOUT:.0f} s"
        raise Unreachable(f"connected to {where}, but there was no answer in {limit}") from None
    finally:
        timer.cancel()


def _without_passwords(text: str, dsn: str) -> str:
    """Return *text*, in which libpq has put no password, without any all the same."""
    return Redactor().hide(text, dsn, {"password": os.environ.get("PGPASSWORD")})


@dataclass(frozen=True)
class _Facts:
    """What the server said. *shown* is a setting in people's units, *numbers* in its own."""

    row: Mapping[str, Any]
    shown: Mapping[str, str]
    numbers: Mapping[str, int]


def _ask(conn: psycopg.Connection[Any]) -> _Facts:
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute(_QUESTION).fetchone() or {}
        settings = cursor.execute(
            "SELECT name, setting, pg_catalog.current_setting(name) AS shown"
            " FROM pg_catalog.pg_settings WHERE name = ANY(%s)",
            (list(_SETTINGS),),
        ).fetchall()
    numbers = {each["name"]: int(each["setting"]) for each in settings if each["setting"].isdigit()}
    return _Facts(row, {each["name"]: each["shown"] for each in settings}, numbers)


# ---- judgement


def _judge(conn: psycopg.Connection[Any], facts: _Facts, size: int | None) -> Iterator[Finding]:
    is_remote = _is_remote(conn)
    pooler = conn.info.backend_pid != facts.row.get("pid")
    yield Finding("connection", _address(conn))
    yield _version(conn)
    yield _pooler(pooler)
    yield _tls(conn, is_remote)
    yield _role(facts)
    yield _standby(facts)
    yield _room(facts, size, pooler)
    yield _idle_session(facts)
    yield from _running_times(facts)
    yield _client_keepalives(conn, is_remote)
    yield _server_keepalives(facts, is_remote)


def _address(conn: psycopg.Connection[Any]) -> str:
    info = conn.info
    where = f"{info.host}:{info.port}" if _is_tcp(conn) else f"{info.host} (Unix socket)"
    return f"{info.dbname} as {info.user} at {where}"


def _is_tcp(conn: psycopg.Connection[Any]) -> bool:
    return not conn.info.host.startswith(("/", "@"))


def _is_remote(conn: psycopg.Connection[Any]) -> bool:
    if not _is_tcp(conn):
        return False
    try:
        return not ipaddress.ip_address(conn.info.hostaddr).is_loopback
    except (ValueError, psycopg.Error):  # a libpq that does not tell
        return conn.info.host not in ("localhost", "127.0.0.1", "::1")


def _version(conn: psycopg.Connection[Any]) -> Finding:
    shown = conn.info.parameter_status("server_version") or str(conn.info.server_version)
    if conn.info.server_version >= REPORTS_ROLE:
        return Finding("PostgreSQL", shown)
    advice = (
        "Before 14, a server does not report that it turned into a standby or read-only: a pool"
        " learns of it by an error."
    )
    return Finding("PostgreSQL", shown, NOTE, advice)


def _pooler(is_there: bool) -> Finding:
    if not is_there:
        return Finding("pooler between", "no")
    advice = (
        "The process that answers is not the one that took the connection: PgBouncer or another"
        " pooler is between. If it pools transactions, give the pool"
        ' kwargs={"prepare_threshold": None} and rely on no session state (SET, LISTEN, advisory'
        " locks, temporary tables); its own limits count, not max_connections."
    )
    return Finding("pooler between", "yes", NOTE, advice)


def _tls(conn: psycopg.Connection[Any], is_remote: bool) -> Finding:
    if conn.pgconn.ssl_in_use:
        return Finding("TLS", "on")
    if not is_remote:
        return Finding("TLS", "off, on this machine")
    advice = "Data cross the network in the clear: sslmode=verify-full, or require at the least."
    return Finding("TLS", "off", WARNING, advice)


def _role(facts: _Facts) -> Finding:
    if not facts.row.get("superuser"):
        return Finding("role", "no superuser")
    advice = (
        "A pool needs no superuser, and one that is takes the connections reserved for the"
        " administrator when the server is full."
    )
    return Finding("role", "superuser", NOTE, advice)


def _standby(facts: _Facts) -> Finding:
    if facts.row.get("standby"):
        advice = "It takes no writes. With several hosts, target_session_attrs chooses among them."
        return Finding("read-only", "a standby", NOTE, advice)
    if facts.shown.get("default_transaction_read_only") == "on":
        advice = "default_transaction_read_only is on for this role, database or server."
        return Finding("read-only", "by default", NOTE, advice)
    return Finding("read-only", "no")


def _room(facts: _Facts, size: int | None, pooler: bool) -> Finding:
    """Compare the sessions that may still be opened with those that the pools may want.

    Three limits hold at once: the server's, the database's and the role's. Our own session, which
    ends with the doctor, takes no room.
    """
    row, numbers = facts.row, facts.numbers
    most = numbers.get("max_connections", 0)
    reserved = numbers.get("superuser_reserved_connections", 0)
    reserved += numbers.get("reserved_connections", 0)
    is_super = bool(row.get("superuser"))
    limits = [("max_connections", most if is_super else most - reserved, row.get("sessions"))]
    for name, limit, sessions in (
        (
            "the database's CONNECTION LIMIT",
            row.get("database_limit"),
            row.get("database_sessions"),
        ),
        ("the role's CONNECTION LIMIT", row.get("role_limit"), row.get("role_sessions")),
    ):
        if limit is not None and limit >= 0 and not is_super:
            limits.append((name, limit, sessions))
    room, tightest = min(
        (max(0, limit - max(0, (sessions or 0) - 1)), name) for name, limit, sessions in limits
    )
    value = f"{room} free of max_connections {most} ({reserved} reserved)"
    if tightest != "max_connections":
        value += f", limited by {tightest}"
    wanted = DEFAULT_SIZE if size is None else size
    if room >= wanted or pooler:
        return Finding("sessions", value)
    wish = f"the {wanted} that your pools may open" if size is not None else "a pool of 4"
    advice = (
        f"There is no room for {wish}: lower max_size, raise {tightest}, close what is idle, or"
        " put PgBouncer between. A pool that meets the limit waits and tries again."
    )
    return Finding("sessions", value, WARNING, advice)


def _idle_session(facts: _Facts) -> Finding:
    name = "idle_session_timeout"
    value = facts.shown.get(name)
    if not facts.numbers.get(name):
        return Finding(name, value)
    advice = (
        "The server ends sessions that a pool keeps for later, and the pool opens new ones in"
        " their place, over and over: ALTER ROLE ... SET idle_session_timeout = 0 for the pool's"
        " role."
    )
    return Finding(name, value, WARNING, advice)


def _running_times(facts: _Facts) -> Iterator[Finding]:
    for name, advice in (
        (
            "idle_in_transaction_session_timeout",
            "A borrower that stops inside a transaction keeps its locks and its slot for ever:"
            " some minutes end that.",
        ),
        (
            "statement_timeout",
            "A query without an end keeps its slot for ever: a limit for the pool's role, or"
            ' kwargs={"options": "-c statement_timeout=60s"}, ends that.',
        ),
    ):
        if facts.numbers.get(name):
            yield Finding(name, facts.shown[name])
        else:
            yield Finding(name, facts.shown.get(name), NOTE, advice)
    if "transaction_timeout" in facts.shown:  # since PostgreSQL 17
        yield Finding("transaction_timeout", facts.shown["transaction_timeout"])


def _client_keepalives(conn: psycopg.Connection[Any], is_remote: bool) -> Finding:
    name = "keepalives"
    if not is_remote:
        return Finding(name, "not needed on this machine")
    given = conn.info.get_parameters()
    idle = given.get("keepalives_idle", "0")
    if given.get("keepalives") != "0" and 0 < int(idle or 0) <= LONG_KEEPALIVE:
        return Finding(name, f"after {idle} s")
    advice = (
        "When the network drops packets silently, a connection looks alive until the system's"
        " keepalives notice, two hours as a rule: add keepalives_idle=30 keepalives_interval=10"
        " keepalives_count=3 to the conninfo, and tcp_user_timeout=30000 on Linux."
    )
    value = "off" if given.get("keepalives") == "0" else "the system's"
    return Finding(name, value, WARNING, advice)


def _server_keepalives(facts: _Facts, is_remote: bool) -> Finding:
    name = "tcp_keepalives_idle"
    value = facts.shown.get(name)
    if not is_remote or 0 < facts.numbers.get(name, 0) <= 2 * LONG_KEEPALIVE:
        return Finding(name, value)
    advice = "The session of a client that vanished stays as long as this, and takes room."
    return Finding(name, value, NOTE, advice)


def unreachable(message: str) -> Finding:
    """Word a server that can't be had."""
    advice = "See that it runs, that the address is right, and that it lets this role in."
    return Finding("connection", message, ERROR, advice)
