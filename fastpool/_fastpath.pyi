import logging
from asyncio import AbstractEventLoop, Task
from collections.abc import Callable
from typing import Any

from ._core import SlotTable
from .annotations import Role

logger: logging.Logger

current_task: Callable[[AbstractEventLoop | None], Task[Any] | None]

class FastPath:
    _lends: bool
    _check: Any
    _configure: Any
    _reset: Any
    role: Role | None
    @property
    def _loop(self) -> Any: ...
    @property
    def _table(self) -> SlotTable: ...
    def _set_table(self, table: SlotTable) -> None: ...
    def _set_loop(self, loop: Any) -> None: ...
    def _lend(self) -> Any: ...
    def _keep(self, conn: Any) -> bool: ...
    def _overrides_nothing(self) -> bool: ...

def lock_is_lost(conn: Any) -> bool: ...
