"""The pools that are compared, an adapter each, and which of them are here.

Owns: the list. Refuses: to measure; to know a pool.
"""

from __future__ import annotations

from .asyncpg_pool import AsyncpgPool
from .bare import AsyncBare, Bare
from .dbutils_pooled import DBUtilsPooled
from .fastpools import AsyncFastpool, AsyncPsycopgPool, Fastpool, PsycopgPool
from .hikaricp import HikariCP
from .pool import AsyncPool, Peer, Pool, Settings
from .psycopg2_threaded import Psycopg2Threaded
from .simple_queue import SimpleQueue
from .sqlalchemy_queue import SQLAlchemyQueue

__all__ = ["ASYNC_POOLS", "LEFT_OUT", "POOLS", "AsyncPool", "Peer", "Pool", "Settings", "present"]

_POOLS: list[type[Pool]] = [
    Fastpool,
    PsycopgPool,
    SQLAlchemyQueue,
    DBUtilsPooled,
    Psycopg2Threaded,
    SimpleQueue,
    HikariCP,
    Bare,
]
_ASYNC_POOLS: list[type[AsyncPool]] = [AsyncFastpool, AsyncPsycopgPool, AsyncpgPool, AsyncBare]

LEFT_OUT: dict[str, str] = {
    peer.name: why for peer in (*_POOLS, *_ASYNC_POOLS) if (why := peer.missing())
}
"""Why each peer that is not measured is not."""

POOLS = {peer.name: peer for peer in _POOLS if peer.name not in LEFT_OUT}
"""The pools for threads that are measured, by name."""

ASYNC_POOLS = {peer.name: peer for peer in _ASYNC_POOLS if peer.name not in LEFT_OUT}
"""The pools for tasks that are measured, by name."""


def present(*names: str) -> list[str]:
    """Return those of *names* that are pools for threads and measured."""
    return [name for name in names if name in POOLS]
