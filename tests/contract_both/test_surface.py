"""What programs import and introspect: names, modules, classes, signatures."""

import importlib
import inspect
import weakref
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib.resources import files

import psycopg
import pytest
from shared.both import done, entered, scalar

pytestmark = pytest.mark.anyio

POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
KEYWORD = inspect.Parameter.KEYWORD_ONLY
NO_DEFAULT = inspect.Parameter.empty

ERRORS = ("PoolClosed", "PoolTimeout", "TooManyRequests")
ALIASES = ("ConnectionCB", "ConnectFailedCB", "ConninfoParam", "KwargsParam")

# Beside connection_class, whose default depends on the kind.
CONSTRUCTOR = {
    "self": (POSITIONAL, NO_DEFAULT),
    "conninfo": (POSITIONAL, ""),
    "kwargs": (KEYWORD, None),
    "min_size": (KEYWORD, 4),
    "max_size": (KEYWORD, None),
    "open": (KEYWORD, None),
    "configure": (KEYWORD, None),
    "check": (KEYWORD, None),
    "reset": (KEYWORD, None),
    "name": (KEYWORD, None),
    "close_returns": (KEYWORD, False),
    "timeout": (KEYWORD, 30.0),
    "max_waiting": (KEYWORD, 0),
    "max_lifetime": (KEYWORD, 3600.0),
    "max_idle": (KEYWORD, 600.0),
    "reconnect_timeout": (KEYWORD, 300.0),
    "reconnect_failed": (KEYWORD, None),
    "num_workers": (KEYWORD, 3),
}

METHODS = {
    "check": {},
    "check_connection": {"conn": NO_DEFAULT},
    "close": {"timeout": 5.0},
    "connection": {"timeout": None},
    "drain": {},
    "get_stats": {},
    "getconn": {"timeout": None},
    "open": {"wait": False, "timeout": 30.0},
    "pop_stats": {},
    "putconn": {"conn": NO_DEFAULT},
    "reconnect_failed": {},
    "resize": {"min_size": NO_DEFAULT, "max_size": None},
    "wait": {"timeout": 30.0},
}

# Every other public method of a pool for tasks is a coroutine function.
PLAIN = {"connection", "get_stats", "pop_stats"}


# The package


@pytest.mark.parametrize("name", ["ConnectionPool", "AsyncConnectionPool", *ERRORS])
def test_the_package_exports_the_name(impl, name):
    assert name in impl.__all__
    assert inspect.isclass(getattr(impl, name))


def test_the_package_tells_its_version(impl):
    assert impl.__version__[0].isdigit()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("pool", ["ConnectionPool"]),
        ("pool_async", ["AsyncConnectionPool"]),
        ("base", ["BasePool", "AttemptWithBackoff"]),
        ("errors", ERRORS),
        ("abc", ["CT", *ALIASES]),
        ("abc", ["ACT", *(f"Async{alias}" for alias in ALIASES)]),
        ("version", ["__version__"]),
    ],
)
def test_the_submodule_is_importable_and_has_the_names(impl, module, names):
    submodule = importlib.import_module(f"{impl.__name__}.{module}")
    for name in names:
        assert hasattr(submodule, name)
        assert getattr(impl, name, getattr(submodule, name)) is getattr(submodule, name)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_operational_errors_of_the_package(impl, name):
    error = getattr(impl, name)
    assert error.__bases__ == (psycopg.OperationalError,)
    assert error.__module__ == impl.__name__


def test_the_package_is_typed(impl):
    assert files(impl.__name__).joinpath("py.typed").is_file()


@pytest.mark.parametrize(("name", "bound"), [("CT", "Connection"), ("ACT", "AsyncConnection")])
def test_the_connection_type_is_bound_to_connection(impl, name, bound):
    variable = getattr(importlib.import_module(f"{impl.__name__}.abc"), name)
    assert f"{bound}[Any]" in str(variable.__bound__).replace("typing.", "")


def test_backoff_constants(base):
    backoff = base.AttemptWithBackoff
    assert backoff.INITIAL_DELAY == 1.0
    assert backoff.DELAY_JITTER == 0.1
    assert backoff.DELAY_BACKOFF == 2.0


def test_the_async_pool_is_no_sync_pool(impl):
    assert not issubclass(impl.AsyncConnectionPool, impl.ConnectionPool)


# The class


def test_a_pool_is_a_base_pool(pool_class, base):
    assert issubclass(pool_class, base.BasePool)


def test_the_class_takes_a_connection_type_at_run_time(pool_class, connection_class, new_pool):
    alias = pool_class[connection_class]
    assert isinstance(new_pool(cls=alias), pool_class)


def test_the_constructor_takes_the_parameters_in_kind_and_default(pool_class, connection_class):
    expected = {**CONSTRUCTOR, "connection_class": (KEYWORD, connection_class)}
    parameters = inspect.signature(pool_class.__init__).parameters
    assert {n: (p.kind, p.default) for n, p in parameters.items() if n in expected} == expected


def test_further_constructor_parameters_are_optional_keywords(pool_class):
    parameters = inspect.signature(pool_class.__init__).parameters
    further = [p for n, p in parameters.items() if n not in CONSTRUCTOR]
    assert all(p.kind is KEYWORD and p.default is not NO_DEFAULT for p in further)


@pytest.mark.parametrize("method", METHODS)
def test_the_method_takes_the_parameters(pool_class, method):
    parameters = dict(inspect.signature(getattr(pool_class, method)).parameters)
    parameters.pop("self", None)
    assert [(p.name, p.kind, p.default) for p in parameters.values()] == [
        (name, POSITIONAL, default) for name, default in METHODS[method].items()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_method_is_a_coroutine_function_or_not(pool_class, kind, method):
    coroutine = inspect.iscoroutinefunction(getattr(pool_class, method))
    assert coroutine is (kind == "tasks" and method not in PLAIN)


@pytest.mark.parametrize("method", ["_connect", "_resolve_conninfo", "_resolve_kwargs"])
def test_what_programs_override_or_await_is_a_coroutine_function_or_not(pool_class, kind, method):
    assert inspect.iscoroutinefunction(getattr(pool_class, method)) is (kind == "tasks")


async def test_check_connection_is_static(pool_class, connection_class, dsn):
    async with entered(await done(connection_class.connect(dsn))) as conn:
        assert await done(pool_class.check_connection(conn)) is None


# The pool


def test_pools_and_blocks_are_contexts_of_one_kind_only(new_pool, kind):
    own, foreign = {
        "threads": (AbstractContextManager, "__aenter__"),
        "tasks": (AbstractAsyncContextManager, "__enter__"),
    }[kind]
    pool = new_pool()
    for context in (pool, pool.connection()):
        assert isinstance(context, own)
        assert not hasattr(context, foreign)


@pytest.mark.parametrize("name", ["min_size", "max_size", "closed"])
def test_the_property_is_read_only(new_pool, name):
    with pytest.raises(AttributeError):
        setattr(new_pool(), name, 1)


async def test_a_pool_is_always_true(new_pool):
    # psycopg decides by the truth of conn._pool whether leaving a block closes the connection.
    pool = new_pool(min_size=0, max_size=1)
    assert pool
    await done(pool.open(wait=True, timeout=5.0))
    assert pool


def test_a_pool_has_no_length(new_pool):
    assert not hasattr(new_pool(), "__len__")


def test_pools_are_hashed_and_compared_by_identity(new_pool):
    one, other = new_pool(), new_pool()
    assert len({one, other, one}) == 2


def test_a_pool_can_be_weakly_referenced(new_pool):
    pool = new_pool()
    assert weakref.ref(pool)() is pool


def test_a_pool_takes_attributes_of_the_user(new_pool):
    pool = new_pool()
    pool.purpose = "reports"
    assert pool.purpose == "reports"


def test_a_subclass_may_take_parameters_of_its_own(pool_class, new_pool):
    class TokenPool(pool_class):
        def __init__(self, *args, retry, **kwargs):
            self.retry = retry
            super().__init__(*args, **kwargs)

    pool = new_pool(cls=TokenPool, retry=3, min_size=2)
    assert (pool.retry, pool.min_size) == (3, 2)


async def test_a_subclass_may_have_an_attribute_called_like_a_callback(pool_class, new_pool):
    class Configured(pool_class):
        configure = "not a callback"
        reset = "nor this"

    pool = new_pool(cls=Configured)
    await done(pool.open(wait=True, timeout=5.0))
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "select 1") == 1


def test_a_pool_shows_its_class_and_name(impl, kind, new_pool):
    pool = new_pool(name="reports")
    cls = "pool.ConnectionPool" if kind == "threads" else "pool_async.AsyncConnectionPool"
    assert repr(pool).startswith(f"<{impl.__name__}.{cls} 'reports' at 0x")


def test_a_renamed_pool_shows_its_new_name(new_pool):
    pool = new_pool(name="reports")
    pool.name = "billing"
    assert "'billing'" in repr(pool)
