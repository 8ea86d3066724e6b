"""The parts of a pool that remember something from one call to the next, as all others know them.

Owns: what may be asked of them. upkeep.equip() makes each for one pool, which it holds weakly.
Refuses: to do any of it. They stand above what asks them, and each has a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._core import Debt, Waiter


class Connects(Protocol):
    """Opens the connections that there should be: connector.Connector."""

    def start(self, debt: Debt) -> None:
        """Have a slot that is CONNECTING connected, or keep it owed while the server is down."""

    def grow(self) -> None:
        """Start the connects that those who wait call for."""

    def fill(self) -> None:
        """Start the connects that are missing to min_size."""

    def take_room(self) -> Debt | None:
        """Take an empty slot to connect, None at the maximum."""

    async def take_turn(self, deadline: float) -> bool:
        """Wait until a borrower may connect for himself. False at the deadline."""

    async def lend(self, debt: Debt, timeout: float) -> Any:
        """Connect a slot for the caller, who is lent the connection, within *timeout* seconds."""

    def retry(self) -> None:
        """A delay between attempts is over."""

    def resume(self) -> None:
        """A while has passed since it gave up."""

    def close(self) -> None:
        """Cancel what is planned."""


class Detects(Protocol):
    """Finds out deadlocks among the borrowers: deadlock.Detector."""

    verdict: tuple[str, list[str]]

    def suspect(self, waiter: Waiter) -> None:
        """Have a look taken soon if *waiter* holds a connection of the pool itself."""


class Watches(Protocol):
    """Looks after leases that last: leaks.Watchman."""

    period: float
    """Seconds between two looks."""

    def look(self) -> None:
        """Warn of leases that have become too old, or have lost their borrower."""
