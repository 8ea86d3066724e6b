"""What programs get when they import psycopg_pool while fastpool stands in for it.

Owns: install(), the finder that answers imports of psycopg_pool and its submodules, and the answer
to `importlib.metadata.version("psycopg_pool")`. Refuses: to replace a psycopg_pool that somebody
has imported, and to load anything, fastpool included, before psycopg_pool is asked for: every
Python that `python -m fastpool run` reaches executes this file, alone, as it starts.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # typing takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.metadata import Distribution, DistributionFinder
    from os import PathLike
    from types import ModuleType

_PACKAGE = "psycopg_pool"

# Programs compare versions to learn what the pool can do. This is the release of psycopg_pool whose
# behaviour fastpool has; fastpool's own version would say that it is too old.
_BEHAVES_LIKE = "3.3.3"

_CLASSES = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
]
# Each is fastpool's module of the same name, the very object: what a test patches in one is
# patched in both.
_SHARED = ["abc", "base", "errors", "null_pool", "null_pool_async", "pool", "pool_async"]
# These can be imported, and are empty: they hold what psycopg_pool is made of, and fastpool is made
# of something else. Whoever wants a name of theirs gets an ImportError or AttributeError.
_EMPTY = ["_acompat", "_compat", "sched", "sched_async"]
_SUBMODULES = [*_SHARED, *_EMPTY, "version"]


def install() -> None:
    """Let fastpool stand in for psycopg_pool in this process, whether that is installed or not.

    From now on `import psycopg_pool`, and the import of any public submodule, gives fastpool's
    classes, to libraries too. `psycopg_pool.__version__` is the release of psycopg_pool that
    fastpool behaves like. Harmless when called again.

    Raises RuntimeError when psycopg_pool itself has been imported: its classes are in the hands of
    those who did.
    """
    present = sys.modules.get(_PACKAGE)
    if present is not None and getattr(present.__spec__, "origin", None) != __file__:
        raise RuntimeError(
            "psycopg_pool has been imported already, and whoever did keeps its classes: call"
            " fastpool.install() before anything imports psycopg_pool, or start the program with"
            " python -m fastpool run"
        )
    serve()
    if present is None:
        sys.modules.pop(_PACKAGE, None)  # None is an import that somebody has forbidden
        import_module(_PACKAGE)


def serve() -> None:
    """Answer imports of psycopg_pool from now on; load nothing before there is one."""
    if _modules not in sys.meta_path:
        sys.meta_path.insert(0, _modules)
        # At the end: a psycopg_pool that is installed answers for itself, with its own version
        # and files. Only where there is none would a program that asks be told to install it.
        sys.meta_path.append(_distributions)


class _Modules:
    """Finds and loads psycopg_pool and its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or (name and name not in _SUBMODULES) or not _has_fastpool():
            return None
        spec = ModuleSpec(
            fullname,
            self,  # type: ignore[arg-type]  # typeshed wants the load_module() of old
            origin=__file__,
            is_package=not name,
        )
        spec.has_location = True
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        if name in _SHARED:
            # The import system takes from here what it returns.
            sys.modules[module.__name__] = import_module(f"fastpool.{name}")
        elif name == "version":
            vars(module).update(__version__=_BEHAVES_LIKE)
        elif not name:
            fastpool = import_module("fastpool")
            vars(module).update(
                {name: getattr(fastpool, name) for name in _CLASSES},
                __doc__="fastpool, which stands in for psycopg_pool.",
                __version__=_BEHAVES_LIKE,
                __all__=_CLASSES.copy(),
            )
            # As with psycopg_pool, whoever has the package has its submodules.
            for submodule in _SUBMODULES:
                import_module(f"{_PACKAGE}.{submodule}")


class _Distributions:
    """Answers importlib.metadata when it is asked for psycopg_pool by name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None

    def find_distributions(self, context: DistributionFinder.Context) -> Iterator[Distribution]:
        # Asked for all that are installed, it names none: this one is not.
        name = (context.name or "").lower().replace("-", "_").replace(".", "_")
        if name == _PACKAGE and _has_fastpool():
            yield _distribution()


_modules = _Modules()
_distributions = _Distributions()


def _has_fastpool() -> bool:
    """Tell whether this Python has a fastpool; that of another virtual environment may not."""
    if "fastpool" in sys.modules:
        return True
    from importlib.util import find_spec

    spec = find_spec("fastpool")
    return spec is not None and spec.origin is not None  # a folder of that name has no origin


def _distribution() -> Distribution:
    """Return what importlib.metadata shall know of psycopg_pool."""
    import pathlib
    from importlib import metadata

    class StandIn(metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            if filename != "METADATA":
                return None
            return (
                "Metadata-Version: 2.1\n"
                "Name: psycopg-pool\n"
                f"Version: {_BEHAVES_LIKE}\n"
                "Summary: Not installed: fastpool stands in for it.\n"
            )

        def locate_file(self, path: str | PathLike[str]) -> pathlib.Path:
            return pathlib.Path(__file__).parent / path

    return StandIn()
