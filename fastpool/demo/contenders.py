"""The pools that are put under the load, each behind the same small face.

A contender opens its pool, lends from it in the way that its documentation shows first, tells
what the pool looks like now, and can take the connections away from threads that a dead or slow
server holds up. It measures nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

import fastpool

from .load import Checkout

# Longer than any fair wait in a run of ordinary length, and the default of both pools.
CHECKOUT_TIMEOUT = 30.0
_CANCEL_TIMEOUT = 1.0


@dataclass(frozen=True)
class Settings:
    """What the user asked for, the same for every contender."""

    dsn: str
    connect_kwargs: Mapping[str, Any]
    size: int
    order: str


@dataclass(frozen=True)
class Picture:
    """A pool at one moment: connections by state, waiters, and its slots where it shows them."""

    counts: Mapping[str, int]
    waiting: int
    oldest_wait: float | None = None
    slots: Sequence[fastpool.SlotInfo] = ()


class Contender:
    """A pool of *size* connections that is ready to be put under the load."""

    def __init__(self, name: str, version: str, settings: Settings) -> None:
        self.name = name
        self.version = version
        self._settings = settings
        self._connections: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._pool = self._make_pool()

    def _make_pool(self) -> Any:
        raise NotImplementedError

    @property
    def checkout(self) -> Checkout:
        """The pool's own way to lend a connection for a block."""
        raise NotImplementedError

    def picture(self) -> Picture:
        """Look at the pool; cheap enough for several times a second."""
        raise NotImplementedError

    def open(self, timeout: float) -> None:
        """Open the pool and wait until it is full; raises the pool's error after *timeout* s."""
        self._pool.open(wait=True, timeout=timeout)

    def close(self) -> None:
        """Close the pool and fail whoever still waits; blocks for a few seconds at most."""
        self._pool.close(timeout=1.0)

    def cancel_queries(self) -> bool:
        """Ask the server to cancel what runs, and return whether anything did.

        Blocks for about a second at most.
        """
        cancels = [
            threading.Thread(target=_cancel, args=(conn,), daemon=True)
            for conn in self._open_connections()
            if conn.info.transaction_status == TransactionStatus.ACTIVE
        ]
        for cancel in cancels:
            cancel.start()
        for cancel in cancels:
            cancel.join(_CANCEL_TIMEOUT)
        return bool(cancels)

    def cut(self) -> bool:
        """End every connection at its socket and close the pool, whatever the server does.

        Returns True: whoever waits for the pool or the server now gets an error.
        """
        for conn in self._open_connections():
            with (
                contextlib.suppress(OSError, psycopg.Error),
                # A duplicate: libpq owns the descriptor and finds the end of its stream.
                socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock,
            ):
                sock.shutdown(socket.SHUT_RDWR)
        self.close()
        return True

    def _common(self) -> dict[str, Any]:
        """The parameters that all pools understand in the same way."""
        return {
            "conninfo": self._settings.dsn,
            "kwargs": dict(self._settings.connect_kwargs),
            "min_size": self._settings.size,
            "max_size": self._settings.size,
            "timeout": CHECKOUT_TIMEOUT,
            "configure": self._remember,
            "name": self.name,
            "open": False,
        }

    def _remember(self, conn: psycopg.Connection[Any]) -> None:
        with self._lock:
            self._connections.add(conn)

    def _open_connections(self) -> list[psycopg.Connection[Any]]:
        with self._lock:
            return [conn for conn in self._connections if not conn.closed]


class Fastpool(Contender):
    """fastpool, by `with pool.connect() as conn`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("fastpool", fastpool.__version__, settings)

    def _make_pool(self) -> Any:
        return fastpool.ConnectionPool(order=self._settings.order, **self._common())

    @property
    def checkout(self) -> Checkout:
        """`pool.connect`, whose connection goes back at the end of the block."""
        checkout: Checkout = self._pool.connect
        return checkout

    def picture(self) -> Picture:
        """The pool's snapshot."""
        snapshot = self._pool.snapshot()
        return Picture(snapshot.counts, snapshot.waiting, snapshot.oldest_wait, snapshot.slots)


class PsycopgPool(Contender):
    """psycopg_pool, by `with pool.connection() as conn`. Raises ImportError if it is missing."""

    def __init__(self, settings: Settings) -> None:
        self._module: Any = importlib.import_module("psycopg_pool")
        super().__init__("psycopg_pool", self._module.__version__, settings)

    def _make_pool(self) -> Any:
        return self._module.ConnectionPool(**self._common())

    @property
    def checkout(self) -> Checkout:
        """`pool.connection`, its context manager."""
        checkout: Checkout = self._pool.connection
        return checkout

    def picture(self) -> Picture:
        """What its statistics tell: it shows neither slots nor how long someone has waited."""
        stats = self._pool.get_stats()
        available = stats.get("pool_available", 0)
        lent = stats.get("pool_size", 0) - available
        return Picture({"available": available, "in_use": lent}, stats.get("requests_waiting", 0))


CONTENDERS: tuple[Callable[[Settings], Contender], ...] = (Fastpool, PsycopgPool)


def _cancel(conn: psycopg.Connection[Any]) -> None:
    with contextlib.suppress(psycopg.Error):
        conn.cancel_safe(timeout=_CANCEL_TIMEOUT)
