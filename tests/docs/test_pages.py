"""Each code block of the manual, the README and CONTRIBUTING is run, and prints what it shows."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from docs.pages import ROOT, Runner, check_output

import fastpool
from fastpool.demo.postgres import PostgresServer

DOCS = ROOT / "docs"
# What a page needs beyond the test extra: these run with make test-clients.
NEEDS = {
    "docs/howto/django.md": ("django", "gunicorn"),
    "docs/howto/fastapi.md": ("fastapi", "uvicorn"),
    "docs/howto/flask.md": ("flask", "gunicorn"),
    "docs/howto/forks.md": ("celery", "gunicorn", "sqlalchemy"),
    "docs/howto/procrastinate.md": ("procrastinate",),
    "docs/howto/sqlalchemy.md": ("sqlalchemy", "greenlet"),
}
# What needs servers of its own: test_servers.py runs it.
ELSEWHERE = {"docs/howto/failover.md"}
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    not DOCS.exists(), reason="these tests need the checkout around them"
)


def name_of(page: Path) -> str:
    """Return the path of a page in the checkout."""
    return page.relative_to(ROOT).as_posix()


def runnable() -> Iterator[object]:
    """Return the pages, those that need more marked and skipped where it is missing."""
    for page in [page for page in PAGES if name_of(page) not in ELSEWHERE]:
        needs = NEEDS.get(name_of(page), ())
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        marks = [pytest.mark.clients] if needs else []
        if missing:
            reason = f"{', '.join(missing)} not installed: make test-clients"
            marks.append(pytest.mark.skip(reason=reason))
        yield pytest.param(page, marks=marks, id=name_of(page))


@pytest.fixture
def environment(server: PostgresServer) -> Iterator[dict[str, str]]:
    """Variables that lead libpq to a database called "app"; nobody may be left in it."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("create database app")
        yield {
            "PGHOST": str(server.socket_dir),
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            "PYTHONPATH": str(Path(fastpool.__file__).parent.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CELERY_BROKER_URL": "sqla+sqlite:///broker.db",
            "CELERY_RESULT_BACKEND": "db+sqlite:///results.db",
        }
        # Waits 5 s for sessions to end, then raises ObjectInUse.
        conn.execute("drop database app")


@pytest.fixture
def runner(environment: dict[str, str], tmp_path: Path) -> Runner:
    """What runs a page."""
    return Runner(tmp_path, environment)


@pytest.mark.parametrize("page", list(runnable()))
def test_the_blocks_of_a_page_run_and_print_what_it_shows(page: Path, runner: Runner) -> None:
    runner.run(page)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```python\nraise ValueError\n```", "ValueError"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```", "this was printed:\n1"),
        ("```console\n$ python -c 'print(1)'\n2\n```", "this was printed:\n1"),
        ("```console\n$ make no-such-target\n```", "make no-such-target"),
        ("```console\n$ pip install 'fastpool[no,binary]'\n```", r"fastpool\[no,binary\]"),
        ("```console\n$ python -c pass &\n$ curl http://127.0.0.1:8000/\n```", "refused"),
        ("```\nof no kind\n```", "who runs"),
    ],
    ids=["raises", "prints", "command", "target", "extra", "server", "kind"],
)
def test_a_page_that_is_wrong_fails(tmp_path: Path, block: str, complaint: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"A page.\n\n{block}\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=complaint):
        Runner(tmp_path, {}).run(page)


def test_three_dots_stand_for_anything_and_nothing_else_does() -> None:
    check_output("here", "a ... c\n", "a b c\n")
    with pytest.raises(AssertionError):
        check_output("here", "a ... c\n", "a b d\n")


def anchors(page: Path) -> set[str]:
    """Return the anchors that a code host gives to a page's headings."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(text)]
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link, anchor in LINK.findall(text):
        target = (page.parent / link) if link else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_markdown_that_a_code_host_renders(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "```{" not in text
    assert ":::" not in text


def test_the_index_names_every_page() -> None:
    linked = {link for link, _ in LINK.findall((DOCS / "index.md").read_text(encoding="utf-8"))}
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert pages == {link for link in linked if not link.startswith("..")}


def test_every_needy_page_exists() -> None:
    assert set(NEEDS) | ELSEWHERE <= {name_of(page) for page in PAGES}
