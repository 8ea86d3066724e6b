"""A Django project whose database has OPTIONS["pool"]."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import django
from django.conf import settings
from django.core.signals import request_finished, request_started
from django.db import OperationalError, connection, transaction
from django.db.backends.signals import connection_created
from django.test.utils import override_settings, setup_databases, teardown_databases
from psycopg.conninfo import conninfo_to_dict

Seen = dict[str, Any]


def set_up(dsn: str, *, health_checks: bool = False, **pool: Any) -> None:
    """Configure the project: one database, with a pool of these options."""
    place = conninfo_to_dict(dsn)
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
        USE_TZ=False,
        TIME_ZONE="Europe/Rome",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": place["host"],
                "PORT": place["port"],
                "USER": place["user"],
                "NAME": place["dbname"],
                "CONN_HEALTH_CHECKS": health_checks,
                "OPTIONS": {"pool": {"min_size": 1, "max_size": 4, "timeout": 10, **pool}},
            }
        },
    )
    django.setup()


def one(query: str, *parameters: Any) -> Any:
    """Return the first value of the first row."""
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]


def pid() -> int:
    """Return the session's backend."""
    number: int = one("select pg_backend_pid()")
    return number


def request(view: Callable[[], Any]) -> Any:
    """Answer a request the way a handler does, with close_old_connections before and after."""
    request_started.send(sender=None, environ={})
    try:
        return view()
    finally:
        request_finished.send(sender=None)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run *work* in so many threads, all at once."""
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        gate.wait()
        work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stats() -> dict[str, int]:
    """Return the pool's stats, zeros included."""
    return {"returns_bad": 0, "requests_waiting": 0, **connection.pool.get_stats()}


def settled(size: int) -> bool:
    """Wait up to 5 s for the pool to have *size* connections, all of them idle."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        now = stats()
        if now["pool_size"] == now["pool_available"] == size:
            return True
        time.sleep(0.01)
    return False


def terminate(backend: int) -> None:
    """End a session, from outside, and wait until it is gone."""
    params = connection.get_connection_params()
    with connection.Database.connect(**params, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [backend])


# ---- the scenarios


def many_threads(dsn: str) -> Seen:
    """Sixteen threads answer 25 requests each; every third one fails after it has written."""
    set_up(dsn)
    from django.contrib.contenttypes.models import ContentType
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    before = ContentType.objects.count()
    connection.close()
    backends: set[int] = set()
    right: list[bool] = []

    def work(thread: int) -> None:
        for number in range(25):
            name = f"{thread}-{number}"

            def view(name: str = name, fails: bool = number % 3 == 0) -> None:
                with transaction.atomic():
                    ContentType.objects.create(app_label="seen", model=name)
                    backends.add(pid())
                    right.append(ContentType.objects.get(model=name).model == name)
                    if fails:
                        raise ZeroDivisionError

            with suppress(ZeroDivisionError):
                request(view)

    in_threads(16, work)
    kept = request(lambda: ContentType.objects.count() - before)
    size = stats()["pool_size"]
    return {
        "right": right.count(True),
        "kept": kept,
        "sessions": len(backends),
        "all_back": settled(size),
        "bad": stats()["returns_bad"],
    }


def persistence(dsn: str) -> Seen:
    """Requests in the main thread and in others, over a pool of one."""
    set_up(dsn, max_size=1)
    created: list[object] = []

    def on_created(**details: Any) -> None:
        created.append(details["connection"])

    connection_created.connect(on_created)
    backends = [request(pid) for _ in range(5)]
    for _ in range(3):
        in_threads(1, lambda _: backends.append(request(pid)))
    inside = request(lambda: [pid(), stats()["pool_available"]])
    return {
        "sessions": len(set(backends)),
        "times_given": len(created),
        "idle_during_a_request": inside[1],
        "idle_after_it": stats()["pool_available"],
        "zone": request(lambda: one("show timezone")),
        "clients_handle": connection.connection is None,
    }


def broken_in_use(dsn: str) -> Seen:
    """The server ends the session in the middle of a request."""
    set_up(dsn, max_size=1)
    ended: list[int] = []

    def view() -> None:
        ended.append(pid())
        terminate(ended[0])
        pid()

    error = ""
    try:
        request(view)
    except OperationalError as raised:
        error = type(raised).__name__
    return {
        "error": error,
        "another_session": request(pid) != ended[0],
        "all_back": settled(1),
        "bad": stats()["returns_bad"],
    }


def broken_in_a_transaction(dsn: str) -> Seen:
    """The same inside atomic(), whose rollback cannot reach the server, in one thread of two."""
    set_up(dsn, max_size=2)
    errors: list[str] = []

    def view() -> None:
        with transaction.atomic():
            terminate(pid())
            pid()

    def work(number: int) -> None:
        for _ in range(3):
            try:
                request(view if number else pid)
            except OperationalError as raised:
                errors.append(type(raised).__name__)

    in_threads(2, work)
    return {"errors": errors, "answers": request(lambda: one("select 1")), "all_back": settled(2)}


def broken_while_idle(dsn: str, health_checks: bool) -> Seen:
    """The server ends every session while all of them are idle."""
    set_up(dsn, health_checks=health_checks, min_size=4, max_size=4)
    request(pid)
    full = settled(4)
    ended: list[int] = []
    params = connection.get_connection_params()
    with connection.Database.connect(**params, autocommit=True) as other:
        rows = other.execute(
            "select pid, pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        ended.extend(row[0] for row in rows)
    backends: list[int] = []
    errors: list[str] = []

    def work(_: int) -> None:
        try:
            backends.append(request(pid))
        except OperationalError as raised:
            errors.append(type(raised).__name__)

    in_threads(4, work)
    return {
        "full": full,
        "ended": len(ended),
        "answered": len(backends),
        "by_the_dead": len(set(backends) & set(ended)),
        "errors": errors,
        "all_back": settled(4),
    }


def old_connections(dsn: str) -> Seen:
    """A program that is no request handler calls close_old_connections() itself."""
    set_up(dsn, max_size=1)
    from django.db import close_old_connections

    pid()
    held = stats()["pool_available"]
    close_old_connections()
    given_back = stats()["pool_available"]
    close_old_connections()
    return {"held": held, "given_back": given_back, "once": stats()["pool_available"]}


def test_databases(dsn: str) -> Seen:
    """A test run makes its database and two clones, uses the first from threads, drops all."""
    # Django has the test database in the pool only when the pool was not open before.
    set_up(dsn)
    from django.contrib.auth.models import User

    name = connection.settings_dict["NAME"]
    made = "select count(*) from pg_database where starts_with(datname, %s)"
    old = setup_databases(verbosity=0, interactive=False, parallel=2)
    in_threads(8, lambda number: request(lambda: User.objects.create(username=str(number))))
    place = one("select current_database()")
    users = User.objects.count()
    databases = one(made, f"test_{name}")
    teardown_databases(old, verbosity=0, parallel=2)
    left = one(made, f"test_{name}")
    connection.close()
    return {
        "in_the_test_database": place == f"test_{name}",
        "users": users,
        "databases": databases,
        "left": left,
    }


def time_zone(dsn: str) -> Seen:
    """TIME_ZONE changes while one thread holds a connection and others come and go."""
    set_up(dsn)

    def zone() -> str:
        name: str = one("show timezone")
        return name

    zones = [request(zone)]
    held: list[str] = []
    changed, looked = threading.Event(), threading.Event()

    def hold() -> None:
        held.append(zone())
        looked.set()
        changed.wait(10)
        connection.close()
        held.append(zone())
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    looked.wait(10)
    first_pool = connection.pool
    with override_settings(TIME_ZONE="America/Lima"):
        replaced = connection.pool is not first_pool
        zones.append(request(zone))
        in_threads(4, lambda _: zones.append(request(zone)))
        changed.set()
        thread.join()
    zones.append(request(zone))
    return {"zones": zones, "held": held[0], "replaced": replaced, "closed": first_pool.closed}


def exhausted(dsn: str) -> Seen:
    """A thread asks for a connection while another one holds the only one."""
    set_up(dsn, max_size=1, timeout=0.2)
    pid()
    caught: list[list[str]] = []

    def work(_: int) -> None:
        try:
            pid()
        except OperationalError as error:
            caught.append([type(error).__module__, type(error.__cause__).__name__])

    in_threads(1, work)
    connection.close()
    in_threads(1, work)
    return {"caught": caught}


def forgetful_threads(dsn: str) -> Seen:
    """Three threads, one after the other, end without giving back what they hold; two could."""
    warnings.simplefilter("ignore", ResourceWarning)
    set_up(dsn, max_size=2, timeout=1)
    answers: list[int] = []
    errors: list[str] = []

    def work(_: int) -> None:
        try:
            answers.append(one("select 1"))
        except OperationalError as error:
            errors.append(type(error.__cause__).__name__)

    for _ in range(4):
        in_threads(1, work)
        gc.collect()
    return {"answers": answers, "errors": errors}
