"""What the psycopg that is installed does of its own accord, with no pool around it.

A test that depends on it says so by one of these marks. That the driver does it was seen without a
pool: of 168 cancellations of a bare connection's rollback() psycopg 3.2.13 swallowed 25, and 3.3.9
none of 162.
"""

from __future__ import annotations

import psycopg
import pytest

VERSION = tuple(int(part) for part in psycopg.__version__.split(".")[:3])

# A task that is cancelled while it waits for the server may go on as if it had not been.
SWALLOWS_CANCELLATIONS = VERSION < (3, 3, 0)

needs_cancellations = pytest.mark.skipif(
    SWALLOWS_CANCELLATIONS, reason="this driver swallows cancellations"
)
needs_cancellations_of_the_dead = pytest.mark.skipif(
    VERSION < (3, 3, 8), reason="this driver makes an error of a cancellation on a dead connection"
)
needs_close_returns = pytest.mark.skipif(
    VERSION < (3, 3, 0), reason="before psycopg 3.3 the driver's close() knows nothing of pools"
)
needs_notifies = pytest.mark.skipif(
    VERSION < (3, 2, 4), reason="this driver's notifies() forgets what came before it"
)
# Its libpq connection has a finalizer of its own, which may come before that of whoever held it.
needs_compiled = pytest.mark.skipif(
    psycopg.pq.__impl__ == "python",
    reason="the pure Python driver ends what is collected",
)
