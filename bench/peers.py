"""The pools that are compared, and how each is told the same things.

Owns: what differs between fastpool and psycopg_pool for a benchmark. Refuses: measuring.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import psycopg_pool

import fastpool

MODULES: dict[str, Any] = {"fastpool": fastpool, "psycopg_pool": psycopg_pool}
DISTRIBUTIONS = {"fastpool": "fastpool", "psycopg_pool": "psycopg-pool"}


def open_pool(peer: str, dsn: str, size: int, **connect: Any) -> Any:
    """Open *peer*'s pool of *size* connections and wait until they are all there.

    *connect*: what psycopg's connect() takes.
    """
    pool = MODULES[peer].ConnectionPool(
        dsn,
        kwargs=connect,
        min_size=size,
        max_size=size,
        open=False,
        # fastpool's connect() needs no such setting.
        close_returns=peer == "psycopg_pool",
        name=f"bench-{peer}",
    )
    pool.open(wait=True, timeout=30.0)
    return pool


def lender(peer: str, pool: Any) -> Any:
    """Return the method that lends a connection whose close() gives it back."""
    return pool.connect if peer == "fastpool" else pool.getconn


def peer_version(peer: str) -> str:
    """Return the version of *peer* that is measured."""
    return version(DISTRIBUTIONS[peer])
