import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from ._core import SlotTable

_F = TypeVar("_F", bound=Callable[..., Any])

logger: logging.Logger

class FastPath:
    _lends: bool
    _check: Any
    _configure: Any
    _reset: Any
    @property
    def _table(self) -> SlotTable: ...
    def _set_table(self, table: SlotTable) -> None: ...
    def _lend(self) -> Any: ...
    def _keep(self, conn: Any) -> bool: ...

class ThreadFastPath(FastPath):
    def getconn(self, timeout: float | None = None) -> Any: ...
    def putconn(self, conn: Any) -> None: ...

class ConnectionBlock:
    def __init__(self, pool: Any, timeout: float | None) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...
    def __call__(self, func: _F) -> _F: ...
    def __del__(self) -> None: ...
