"""A connection as an instrumentation hands it out, made by hand."""

from __future__ import annotations

from typing import Any

OWN = {"_wrapped"}


class Proxy:
    """Reads and sets what is the connection's; entering a block of either kind yields the proxy."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._wrapped, name)

    def __enter__(self) -> Any:
        self._wrapped.__enter__()
        return self

    def __exit__(self, *exc: Any) -> Any:
        return self._wrapped.__exit__(*exc)

    async def __aenter__(self) -> Any:
        await self._wrapped.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return await self._wrapped.__aexit__(*exc)
