"""What a closed pool says, however often it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fastpool


def test_a_closed_pool_says_each_time_that_it_is_closed(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    pool.close()
    for _ in range(3):
        with pytest.raises(fastpool.PoolClosed, match="the pool 'p' is already closed"):
            pool.getconn(timeout=0.1)
