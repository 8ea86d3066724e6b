"""Which kind of server a pool is for: one that takes writes, or one that refuses them.

Owns: what `role=` asks of libpq, and how a session is seen to have changed sides. Refuses: to ask
the server. Since PostgreSQL 14 it reports `in_hot_standby` and `default_transaction_read_only` by
itself, with the first answer after a change; of a server that does not, nothing is concluded here,
and only what libpq finds out while it connects counts.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import OperationalError, ProgrammingError

from .base import BasePool, logger, now

_REPORTED = (b"in_hot_standby", b"default_transaction_read_only")

# A session that changed sides has most likely done so with its server, and all are replaced. But
# it may have been told to, by SET in this session only, and may be told so at each use. So all are
# replaced this often (seconds) at most; in between the idle ones are asked.
RENEWAL_PERIOD = 10.0


def is_set(name: str, variable: str, conninfo: str, kwargs: dict[str, Any]) -> bool:
    """Whether the user sets this parameter of libpq: by keyword, environment *variable*, or
    conninfo."""
    if name in kwargs or variable in os.environ:
        return True
    try:
        return name in conninfo_to_dict(conninfo)
    except ProgrammingError:
        return False  # whoever connects will say what is wrong with it


def ask(pool: BasePool, conninfo: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return *kwargs* with the pool's role, for libpq to take no other server."""
    name = "target_session_attrs"
    if pool.role is None or is_set(name, "PGTARGETSESSIONATTRS", conninfo, kwargs):
        return kwargs
    return {**kwargs, name: pool.role}  # libpq has the same names for them


def fault(pool: BasePool, conn: Any) -> str | None:
    """Say why a session is not of the pool's role, as the server reported last; None if it is.

    No round trip.
    """
    if pool.role is None:
        return None
    reported = [conn.pgconn.parameter_status(name) for name in _REPORTED]
    if None in reported:
        return None
    is_read_only = b"on" in reported
    if is_read_only == (pool.role == "read-only"):
        return None
    kind = "read-only" if is_read_only else "read-write"
    return f"the session is {kind}, and the pool's role is {pool.role}"


def verify(pool: BasePool, conn: Any) -> None:
    """Raise OperationalError when a session is not of the pool's role."""
    text = fault(pool, conn)
    if text is not None:
        raise OperationalError(text)


def note_change(pool: BasePool, conn: Any, text: str) -> None:
    """A session has changed sides: have all connections of today replaced, the idle ones soon; or,
    when that was done just now, have the idle ones checked."""
    logger.warning("discarding connection of the wrong role: %s: %s", text, str(conn))
    if now() >= pool._renewed_until:
        pool._renewed_until = now() + RENEWAL_PERIOD
        pool._table.new_epoch()  # none of them is lent any more
        pool._submit(pool._renewal_job)
    else:
        pool._submit(partial(pool._call, pool.check))
