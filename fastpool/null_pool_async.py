"""The null pool for asyncio: limits and queues, but keeps no connection open.

Owns: AsyncNullConnectionPool. Refuses: to differ from AsyncConnectionPool in anything but what
null_base says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .annotations import ACT
from .null_base import BaseNullPool, with_defaults
from .pool_async import AsyncConnectionPool


class AsyncNullConnectionPool(BaseNullPool, AsyncConnectionPool[ACT]):
    """A pool that opens a connection for each lending, and closes it when it comes back.

    To AsyncConnectionPool what NullConnectionPool is to ConnectionPool. Connects go side by side,
    each in a task of its own, which its borrower can leave.
    """

    if not TYPE_CHECKING:
        __init__ = with_defaults(
            AsyncConnectionPool.__init__, "AsyncNullConnectionPool", min_size=0
        )
