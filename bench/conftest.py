"""What every benchmark shares: a PostgreSQL, how long to measure, and what is told of a result."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastpool.demo.postgres import connect_or_start

from .depth import Depth, chosen
from .facts import facts_of
from .interleave import record
from .peers import LEFT_OUT, Peer

T = TypeVar("T")

if getattr(sys, "_is_gil_enabled", lambda: True)():
    # With a GIL only one thread runs: there is nothing to scale.
    collect_ignore = ["test_scaling.py"]


class Publish(Protocol):
    """Hand the *samples* of *peer*, in seconds, to pytest-benchmark, with what is known of them."""

    def __call__(
        self, peer: type[Peer], group: str, samples: Sequence[float], **extra: object
    ) -> None: ...


class Measured(Protocol):
    """Return what *measure* returned when *key* was first asked for in this session."""

    def __call__(self, key: object, measure: Callable[[], T]) -> T: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="measure briefly")


def pytest_configure(config: pytest.Config) -> None:
    # It warns when nothing was measured; as an error that would hide why.
    config.addinivalue_line(
        "filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning"
    )


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    left_out = [{"peer": peer, "why": why} for peer, why in LEFT_OUT.items()]
    machine_info["fastpool_bench"] = {"left_out": left_out}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for peer, why in LEFT_OUT.items():
        terminalreporter.write_line(f"left out: {peer}: {why}")


@pytest.fixture(scope="session")
def depth(request: pytest.FixtureRequest) -> Depth:
    """How much to measure, by --quick."""
    return chosen(request.config)


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A PostgreSQL: that of DATABASE_URL, or one started for this run."""
    with connect_or_start(settings={"max_connections": "300", "fsync": "off"}) as source:
        yield source.dsn


@pytest.fixture(scope="session")
def facts(dsn: str) -> dict[str, Any]:
    """On what this run measures."""
    return facts_of(dsn)


@pytest.fixture
def publish(benchmark: BenchmarkFixture, facts: dict[str, Any]) -> Publish:
    """`publish(peer, group, samples, workload=…, …)`: the end of every benchmark."""

    def hand_over(peer: type[Peer], group: str, samples: Sequence[float], **extra: object) -> None:
        benchmark.group = group
        about = {"peer": peer.name, "version": peer.version()}
        record(benchmark, samples, **about, **extra, **facts)

    return hand_over


@pytest.fixture(scope="session")
def measured() -> Measured:
    """`measured(key, measure)`: a test for each peer, but one measurement of all."""
    known: dict[object, Any] = {}

    def once(key: object, measure: Callable[[], T]) -> T:
        if key not in known:
            known[key] = measure()
        result: T = known[key]
        return result

    return once


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for the async pools, which stands still between their rounds."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
