"""psycopg as the driver of the pools that take any.

Owns: how such a pool is told to connect. Refuses: to pool.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg

from .pool import Settings


def connection_class(settings: Settings) -> type[psycopg.Connection[Any]]:
    """Return psycopg's class, or one derived from it that connects by *settings.connecting*."""
    if settings.connecting is None:
        return psycopg.Connection
    connecting = settings.connecting

    class OtherWay(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            return connecting(partial(super().connect, *args, **kwargs))

    return OtherWay


def connect(settings: Settings) -> psycopg.Connection[Any]:
    """Open a connection of psycopg."""
    return connection_class(settings).connect(settings.dsn, autocommit=settings.autocommit)
