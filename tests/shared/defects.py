"""What the suites of psycopg_pool's defects share: a mark for a test that fails on that."""

from __future__ import annotations

from typing import Any

import pytest

try:
    import psycopg_pool
except ImportError:
    psycopg_pool = None

FAILED = pytest.fail.Exception
# Every statistic; psycopg_pool leaves out what is zero.
KEYS = {
    "connections_errors",
    "connections_lost",
    "connections_ms",
    "connections_num",
    "pool_available",
    "pool_max",
    "pool_min",
    "pool_size",
    "requests_errors",
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_waiting",
    "returns_bad",
    "usage_ms",
}


def defect(
    reason: str,
    raises: str | type[BaseException] = AssertionError,
    condition: bool = True,
    at_times: bool = False,
) -> pytest.MarkDecorator:
    """Run the test on both implementations; on psycopg_pool it fails with *raises*, a class or the
    name of one of its exceptions.

    *condition*: whether the defect shows with the installed psycopg and this Python.
    *at_times*: psycopg_pool needs bad luck to fail; else it always does.
    """
    expected: Any = raises
    if isinstance(raises, str):
        expected = getattr(psycopg_pool, raises) if psycopg_pool else Exception
    fails = pytest.mark.xfail(condition, reason=reason, raises=expected, strict=not at_times)
    return pytest.mark.parametrize(
        "impl", [pytest.param("psycopg_pool", marks=fails), "fastpool"], indirect=True
    )
