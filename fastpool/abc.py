"""The names for annotations that programs import: psycopg_pool.abc's, and those of fastpool's own
parameters. Defines nothing."""

from __future__ import annotations

from .annotations import (
    ACT,
    CT,
    AsyncConnectionCB,
    AsyncConnectionContext,
    AsyncConninfoParam,
    AsyncKwargsParam,
    ConnectionCB,
    ConnectionContext,
    ConninfoParam,
    KwargsParam,
    Role,
)
from .pool import ConnectFailedCB
from .pool_async import AsyncConnectFailedCB

__all__ = [
    "ACT",
    "CT",
    "AsyncConnectFailedCB",
    "AsyncConnectionCB",
    "AsyncConnectionContext",
    "AsyncConninfoParam",
    "AsyncKwargsParam",
    "ConnectFailedCB",
    "ConnectionCB",
    "ConnectionContext",
    "ConninfoParam",
    "KwargsParam",
    "Role",
]
