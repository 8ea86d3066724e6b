"""The names for annotations that programs import from psycopg_pool.abc. Nothing of its own."""

from __future__ import annotations

from .annotations import (
    ACT,
    CT,
    AsyncConnectionCB,
    AsyncConninfoParam,
    AsyncKwargsParam,
    ConnectionCB,
    ConninfoParam,
    KwargsParam,
)
from .pool import ConnectFailedCB
from .pool_async import AsyncConnectFailedCB

__all__ = [
    "ACT",
    "CT",
    "AsyncConnectFailedCB",
    "AsyncConnectionCB",
    "AsyncConninfoParam",
    "AsyncKwargsParam",
    "ConnectFailedCB",
    "ConnectionCB",
    "ConninfoParam",
    "KwargsParam",
]
