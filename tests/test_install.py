"""fastpool in psycopg_pool's place: install(), and `python -m fastpool run`.

Each test has interpreters of its own: standing in can't be undone. What `run` does is compared with
what plain Python does, word for word.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import venv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

import fastpool

RUN = ("-m", "fastpool", "run")
CLASSES = {
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "TooManyRequests",
}
SHARED = ["abc", "base", "errors", "null_pool", "null_pool_async", "pool", "pool_async"]
EMPTY = ["_acompat", "_compat", "sched", "sched_async"]

needs_psycopg_pool = pytest.mark.skipif(
    find_spec("psycopg_pool") is None, reason="there is no psycopg_pool to compare with"
)


class Interpreter:
    """Runs Python in a folder of its own, every warning an error."""

    def __init__(self, folder: Path, executable: str = sys.executable) -> None:
        self.folder = folder
        self.executable = executable
        path = os.environ.get("PYTHONPATH")
        # Relative entries mean this process's folder, not the test's.
        entries = [str(Path(entry).absolute()) for entry in path.split(os.pathsep)] if path else []
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}

    def write(self, name: str, text: str) -> Path:
        """Write a file of *text* below the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def __call__(
        self,
        *words: str | Path,
        environment: Mapping[str, str] | None = None,
        given: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run Python on *words* with *given* as its standard input."""
        return subprocess.run(
            [self.executable, "-W", "error", *map(str, words)],
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
            input=given,
            capture_output=True,
            text=True,
            timeout=50,
        )

    def prints(self, *words: str | Path, **environment: str) -> str:
        """Run Python on *words*, which must end well and silently, and return its output."""
        done = self(*words, environment=environment)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.strip()

    def passes(self, code: str) -> None:
        """Run *code*, a program full of assertions."""
        assert self.prints("-c", textwrap.dedent(code)) == ""


@pytest.fixture
def python(tmp_path: Path) -> Interpreter:
    """The Python that runs the tests."""
    return Interpreter(tmp_path)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with neither fastpool nor psycopg_pool in it."""
    home = tmp_path_factory.mktemp("bare")
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(home)
    return Path(builder.ensure_directories(home).env_exe)


@pytest.fixture
def without_psycopg_pool(tmp_path: Path, bare: Path) -> Interpreter:
    """A Python that has fastpool and its driver, and no psycopg_pool."""
    site = tmp_path / "site"
    site.mkdir()
    folders = dict.fromkeys(Path(module.__file__).parents[1] for module in (fastpool, psycopg))
    for folder in folders:
        for path in folder.iterdir():
            if path.name.startswith(("fastpool", "psycopg", "typing_extensions")):
                if not path.name.startswith("psycopg_pool"):
                    (site / path.name).symlink_to(path)
    python = Interpreter(tmp_path, str(bare))
    python.environment["PYTHONPATH"] = str(site)
    python.prints("-c", "import importlib.util as u; assert not u.find_spec('psycopg_pool')")
    return python


# --- install() --------------------------------------------------------------------------------


def test_the_classes_of_psycopg_pool_are_fastpools(python: Interpreter) -> None:
    python.passes(f"""
        import fastpool
        fastpool.install()
        import psycopg_pool
        from psycopg_pool import *
        for name in {sorted(CLASSES)}:
            assert getattr(psycopg_pool, name) is getattr(fastpool, name) is globals()[name]
            assert name in dir(psycopg_pool)
        assert set(psycopg_pool.__all__) == {CLASSES}
    """)


@pytest.mark.parametrize("name", SHARED)
def test_a_submodule_is_fastpools_own(python: Interpreter, name: str) -> None:
    python.passes(f"""
        import importlib, sys
        import fastpool.{name}
        fastpool.install()
        import psycopg_pool
        ours = sys.modules["fastpool.{name}"]
        assert psycopg_pool.{name} is ours  # though nobody has imported it
        import psycopg_pool.{name}
        from psycopg_pool import {name} as imported
        assert psycopg_pool.{name} is ours and imported is ours
        assert importlib.import_module("psycopg_pool.{name}") is ours
        assert sys.modules["psycopg_pool.{name}"] is ours
        assert ours.__name__ == ours.__spec__.name == "fastpool.{name}"
    """)


def test_names_can_be_imported_from_submodules(python: Interpreter) -> None:
    python.passes("""
        import fastpool
        fastpool.install()
        from psycopg_pool.abc import ACT, CT, AsyncConnectionCB, AsyncConnectFailedCB
        from psycopg_pool.abc import AsyncConninfoParam, AsyncKwargsParam
        from psycopg_pool.abc import ConnectionCB, ConnectFailedCB, ConninfoParam, KwargsParam
        from psycopg_pool.base import AttemptWithBackoff, BasePool
        from psycopg_pool.errors import PoolTimeout
        from psycopg_pool.pool import ConnectionPool
        from psycopg_pool.pool_async import AsyncConnectionPool
        from psycopg_pool.null_pool import NullConnectionPool
        from psycopg_pool.null_pool_async import AsyncNullConnectionPool
        assert PoolTimeout is fastpool.PoolTimeout
        assert ConnectionPool is fastpool.ConnectionPool
        assert AsyncConnectionPool is fastpool.AsyncConnectionPool
        assert NullConnectionPool is fastpool.NullConnectionPool
        assert AsyncNullConnectionPool is fastpool.AsyncNullConnectionPool
    """)


@pytest.mark.parametrize("name", EMPTY)
def test_an_inner_module_can_be_imported_and_is_empty(python: Interpreter, name: str) -> None:
    python.passes(f"""
        import fastpool
        fastpool.install()
        import psycopg_pool.{name}
        assert [name for name in vars(psycopg_pool.{name}) if not name.startswith("_")] == []
        try:
            from psycopg_pool.{name} import Scheduler
        except ImportError as error:
            assert "standin.py" in str(error)
        else:
            raise AssertionError
    """)


def test_a_submodule_that_fastpool_does_not_have_is_not_found(python: Interpreter) -> None:
    python.passes("""
        import fastpool
        fastpool.install()
        try:
            import psycopg_pool.demo
        except ModuleNotFoundError as error:
            assert error.name == "psycopg_pool.demo"
        else:
            raise AssertionError
    """)


def test_a_pool_is_an_instance_of_psycopg_pools_class(python: Interpreter) -> None:
    python.passes("""
        import fastpool
        fastpool.install()
        import psycopg_pool, psycopg_pool.base
        pool = fastpool.ConnectionPool(open=False)
        assert isinstance(pool, psycopg_pool.ConnectionPool)
        assert isinstance(pool, psycopg_pool.base.BasePool)
        assert not isinstance(pool, psycopg_pool.NullConnectionPool)
        assert isinstance(psycopg_pool.NullConnectionPool(open=False), fastpool.ConnectionPool)
    """)


def test_the_module_is_found_by_who_looks_for_it(python: Interpreter) -> None:
    python.passes("""
        import importlib.util, inspect
        import fastpool
        fastpool.install()
        import psycopg_pool
        spec = importlib.util.find_spec("psycopg_pool")
        assert spec is psycopg_pool.__spec__
        assert spec.name == psycopg_pool.__name__ == psycopg_pool.__package__ == "psycopg_pool"
        assert importlib.util.find_spec("psycopg_pool.errors") is not None
        assert importlib.util.find_spec("psycopg_pool.no_such") is None
        assert inspect.getfile(psycopg_pool) == spec.origin
        assert "standin.py" in repr(psycopg_pool)
        assert inspect.getdoc(psycopg_pool).startswith("fastpool")
    """)


def test_the_module_can_be_reloaded(python: Interpreter) -> None:
    python.passes("""
        import importlib
        import fastpool
        fastpool.install()
        import psycopg_pool
        assert importlib.reload(psycopg_pool) is psycopg_pool
        assert psycopg_pool.ConnectionPool is fastpool.ConnectionPool
        assert importlib.reload(psycopg_pool.version) is psycopg_pool.version
        assert importlib.reload(psycopg_pool.errors) is fastpool.errors
        fastpool.install()
    """)


def test_the_module_can_be_patched(python: Interpreter) -> None:
    python.passes("""
        from unittest import mock
        import fastpool
        fastpool.install()
        import psycopg_pool
        with mock.patch("psycopg_pool.ConnectionPool") as stub:
            from psycopg_pool import ConnectionPool
            assert ConnectionPool is stub
        assert psycopg_pool.ConnectionPool is fastpool.ConnectionPool
        with mock.patch("psycopg_pool.pool.ConnectionPool") as stub:
            assert fastpool.pool.ConnectionPool is stub
        with mock.patch("psycopg_pool.base.AttemptWithBackoff.INITIAL_DELAY", 0.1):
            assert fastpool.base.AttemptWithBackoff.INITIAL_DELAY == 0.1
    """)


@pytest.mark.parametrize("name", ["PoolClosed", "PoolTimeout", "TooManyRequests"])
def test_exceptions_can_be_pickled_and_are_found_by_both_names(
    python: Interpreter, name: str
) -> None:
    python.passes(f"""
        import pickle
        import fastpool
        fastpool.install()
        import psycopg_pool
        for error in (
            pickle.loads(pickle.dumps(psycopg_pool.{name}("why", 1))),
            pickle.loads(b"cpsycopg_pool\\n{name}\\n(S'why'\\nI1\\ntR."),
        ):
            assert type(error) is fastpool.{name} is psycopg_pool.{name}
            assert error.args == ("why", 1)
    """)


def test_installing_again_changes_nothing(python: Interpreter) -> None:
    python.passes("""
        import sys
        import fastpool
        fastpool.install()
        before = dict(sys.modules), list(sys.meta_path)
        fastpool.install()
        import psycopg_pool.pool
        fastpool.install()
        assert before == (dict(sys.modules), list(sys.meta_path))
    """)


@needs_psycopg_pool
def test_install_refuses_to_replace_what_has_been_imported(python: Interpreter) -> None:
    python.passes("""
        import sys
        import psycopg_pool
        import fastpool
        before = list(sys.meta_path)
        try:
            fastpool.install()
        except RuntimeError as error:
            assert "imported already" in str(error)
            assert "call fastpool.install() before anything imports psycopg_pool" in str(error)
            assert "python -m fastpool run" in str(error)
        else:
            raise AssertionError
        assert sys.modules["psycopg_pool"] is psycopg_pool
        assert psycopg_pool.ConnectionPool is not fastpool.ConnectionPool
        assert sys.meta_path == before
    """)


def test_an_import_that_was_forbidden_is_answered(python: Interpreter) -> None:
    python.passes("""
        import sys
        sys.modules["psycopg_pool"] = None
        import fastpool
        fastpool.install()
        import psycopg_pool
        assert psycopg_pool.ConnectionPool is fastpool.ConnectionPool
    """)


def test_a_copy_of_psycopg_pool_beside_the_program_is_stood_in_for(python: Interpreter) -> None:
    python.write("psycopg_pool/__init__.py", "raise AssertionError('imported')")
    python.write("psycopg_pool/errors.py", "raise AssertionError('imported')")
    python.passes("""
        import fastpool
        fastpool.install()
        import psycopg_pool.errors
        assert psycopg_pool.errors.PoolTimeout is fastpool.PoolTimeout
    """)


def test_psycopg_pool_need_not_be_installed(without_psycopg_pool: Interpreter) -> None:
    without_psycopg_pool.passes("""
        import fastpool
        fastpool.install()
        import psycopg_pool
        from psycopg_pool.pool import ConnectionPool
        assert psycopg_pool.ConnectionPool is ConnectionPool is fastpool.ConnectionPool
    """)


def test_importing_fastpool_alone_changes_nothing(python: Interpreter) -> None:
    python.passes("""
        import sys
        import psycopg
        before = list(sys.meta_path)
        import fastpool
        assert not [name for name in sys.modules if name.startswith("psycopg_pool")]
        assert sys.meta_path == before
    """)


# --- versions ---------------------------------------------------------------------------------


def test_the_version_is_of_the_release_that_fastpool_behaves_like(python: Interpreter) -> None:
    python.passes("""
        import fastpool
        fastpool.install()
        import psycopg_pool, psycopg_pool.version
        assert psycopg_pool.__version__ == psycopg_pool.version.__version__ == "3.3.3"
    """)


@pytest.mark.parametrize("name", ["psycopg_pool", "psycopg-pool", "Psycopg.Pool"])
def test_metadata_knows_a_version_where_psycopg_pool_is_not_installed(
    without_psycopg_pool: Interpreter, name: str
) -> None:
    without_psycopg_pool.passes(f"""
        from importlib import metadata
        import fastpool
        fastpool.install()
        assert metadata.version({name!r}) == "3.3.3"
        found = metadata.distribution({name!r})
        assert found.metadata["Name"] == "psycopg-pool"
        assert "fastpool" in found.metadata["Summary"]
        assert not found.requires and not found.files
    """)


def test_metadata_lists_only_what_is_installed(without_psycopg_pool: Interpreter) -> None:
    without_psycopg_pool.passes("""
        from importlib import metadata
        import fastpool
        fastpool.install()
        names = {found.metadata["Name"].lower() for found in metadata.distributions()}
        assert "psycopg" in names and "psycopg-pool" not in names
        try:
            metadata.version("psycopg_poo")
        except metadata.PackageNotFoundError:
            pass
        else:
            raise AssertionError
    """)


@needs_psycopg_pool
def test_metadata_of_an_installed_psycopg_pool_is_its_own(python: Interpreter) -> None:
    python.passes("""
        from importlib import metadata
        before = metadata.version("psycopg-pool"), metadata.files("psycopg-pool")
        import fastpool
        fastpool.install()
        assert (metadata.version("psycopg-pool"), metadata.files("psycopg-pool")) == before
        assert len(before[1]) > 5
    """)


# --- exceptions under both names, without install() -------------------------------------------

each_exception = pytest.mark.parametrize("name", ["PoolClosed", "PoolTimeout", "TooManyRequests"])


@needs_psycopg_pool
@each_exception
def test_an_exception_is_caught_by_either_name(python: Interpreter, name: str) -> None:
    python.passes(f"""
        import fastpool, psycopg_pool
        for error in (psycopg_pool.{name}, fastpool.{name}):
            try:
                raise fastpool.{name}("why", 1)
            except error as caught:
                assert caught.args == ("why", 1)
                assert repr(caught) == "{name}('why', 1)"
                assert type(caught).__module__ == "fastpool"
    """)


@needs_psycopg_pool
def test_exceptions_of_other_names_are_not_caught(python: Interpreter) -> None:
    python.passes("""
        import fastpool, psycopg_pool
        error = fastpool.PoolTimeout("why")
        assert isinstance(error, psycopg_pool.PoolTimeout)
        assert not isinstance(error, (psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests))
    """)


@needs_psycopg_pool
def test_what_a_pool_raises_is_caught_by_either_name(python: Interpreter) -> None:
    python.passes("""
        import fastpool, psycopg_pool
        pool = fastpool.ConnectionPool(open=False)
        for error in (psycopg_pool.PoolClosed, fastpool.PoolClosed):
            try:
                pool.getconn()
            except error:
                continue
            raise AssertionError
    """)


@needs_psycopg_pool
def test_psycopg_pool_may_be_imported_later(python: Interpreter) -> None:
    python.passes("""
        import fastpool
        assert type(fastpool.PoolTimeout("why")) is fastpool.PoolTimeout
        import psycopg_pool
        assert isinstance(fastpool.PoolTimeout("why"), psycopg_pool.PoolTimeout)
    """)


@needs_psycopg_pool
@each_exception
def test_an_exception_of_both_names_can_be_pickled_and_copied(
    python: Interpreter, name: str
) -> None:
    python.passes(f"""
        import copy, pickle, fastpool, psycopg_pool
        error = fastpool.{name}("why", 1)
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert isinstance(twin, fastpool.{name}) and isinstance(twin, psycopg_pool.{name})
            assert twin.args == ("why", 1)
    """)


@needs_psycopg_pool
@each_exception
def test_a_pickled_exception_needs_no_psycopg_pool_where_it_arrives(
    python: Interpreter, name: str
) -> None:
    python.passes(f"""
        import pickle, subprocess, sys, fastpool, psycopg_pool
        pickled = pickle.dumps(fastpool.{name}("why"))
        code = '''
        import pickle, sys
        error = pickle.loads(sys.stdin.buffer.read())
        import fastpool
        assert type(error) is fastpool.{name}
        assert "psycopg_pool" not in sys.modules
        '''
        lines = [line.strip() for line in code.splitlines()]
        subprocess.run([sys.executable, "-c", "\\n".join(lines)], input=pickled, check=True)
    """)


@each_exception
def test_raising_imports_nothing_and_gives_the_class_itself(python: Interpreter, name: str) -> None:
    python.passes(f"""
        import sys, fastpool, psycopg
        assert type(fastpool.{name}("why")) is fastpool.{name}
        assert "psycopg_pool" not in sys.modules
        assert fastpool.{name}.__bases__ == (psycopg.OperationalError,)
    """)


def test_while_fastpool_stands_in_there_is_one_class(python: Interpreter) -> None:
    python.passes("""
        import fastpool
        fastpool.install()
        import psycopg_pool
        assert type(fastpool.PoolTimeout("why")) is psycopg_pool.PoolTimeout
    """)


def test_a_module_that_is_no_psycopg_pool_does_no_harm(python: Interpreter) -> None:
    python.passes("""
        import sys, types, fastpool
        from unittest import mock
        for module in (None, types.ModuleType("psycopg_pool"), mock.MagicMock()):
            sys.modules["psycopg_pool"] = module
            assert type(fastpool.PoolTimeout("why")) is fastpool.PoolTimeout
    """)


# --- python -m fastpool run -------------------------------------------------------------------

FACTS = """
import os, sys
spec = __spec__ and __spec__.name
print(__name__, globals().get("__file__"), spec, __package__, sys.argv)
print([entry for entry in sys.path if not entry.endswith("startup")])  # one that `run` needs
print(sys.modules["__main__"].__dict__ is globals(), sorted(globals()))
print(sys.flags, sys.warnoptions, sys._xoptions, sys.stdin.read())
"""


@pytest.mark.parametrize(
    "words",
    [
        ["app.py", "-m", "--help", "--", "-W", ""],
        ["./folder/app.py", "--version"],
        ["folder", "-c"],
        ["-m", "package", "-h", "--", "x y"],
        ["-mpackage", "-h"],
        ["-m", "package.module", "1"],
        ["-c", FACTS, "-m", "x"],
        ["-", "-c", "x"],
    ],
    ids=["script", "path", "folder", "package", "glued", "module", "code", "stdin"],
)
def test_a_program_finds_what_it_would_find_without_us(
    python: Interpreter, words: list[str]
) -> None:
    for name in ("app", "folder/app", "folder/__main__", "package/__main__", "package/module"):
        python.write(f"{name}.py", FACTS)
    python.write("package/__init__.py", "")
    given = FACTS if words[0] == "-" else "some input"
    options = ["-X", "utf8", "-Bum"]
    alone = python(*options[:2], "-Bu", *words, given=given)
    assert alone.returncode == 0
    assert alone.stdout.startswith("__main__")
    run = python(*options, "fastpool", "run", *words, given=given)
    assert (run.stdout, run.stderr, run.returncode) == (alone.stdout, alone.stderr, 0)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a message')",
        "def f():\n    raise ValueError('no')\nf()",
        "import os; os._exit(9)",
        "raise KeyboardInterrupt",
        "this is no Python",
    ],
    ids=["end", "code", "message", "exception", "sudden", "interrupt", "syntax"],
)
def test_a_program_ends_as_it_would_without_us(python: Interpreter, code: str) -> None:
    python.write("app.py", code)
    alone = python("app.py")
    run = python(*RUN, "app.py")
    assert (run.returncode, run.stdout, run.stderr) == (
        alone.returncode,
        alone.stdout,
        alone.stderr,
    )


@pytest.mark.parametrize("words", [["missing.py"], ["-m", "missing"], ["-m"], ["-c"]])
def test_what_python_can_not_run_is_refused_as_python_does(
    python: Interpreter, words: list[str]
) -> None:
    alone = python(*words)
    run = python(*RUN, *words)
    assert alone.returncode != 0
    assert (run.returncode, run.stderr) == (alone.returncode, alone.stderr)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to die of")
def test_a_signal_reaches_the_program_itself(python: Interpreter) -> None:
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    command = [sys.executable, *RUN, "-c", code]
    with subprocess.Popen(
        command, cwd=python.folder, env=python.environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process")
def test_where_python_can_not_be_replaced_the_interrupt_is_the_programs(
    python: Interpreter,
) -> None:
    """Windows: the caller waits, and lets the program decide."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(7));"
        " print(flush=True); signal.pause()"
    )
    code = (
        "import os, sys; from fastpool.run import wait_for;"
        f" sys.exit(wait_for([sys.executable, '-c', {program!r}], os.environ))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=python.folder,
        env=python.environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to both
        assert process.wait(20) == 7


SHOWS_ITSELF = """
import sys, psycopg_pool
print(sys.argv[1], psycopg_pool.__spec__.origin.endswith("standin.py"))
"""


def test_programs_that_the_program_starts_are_reached(python: Interpreter) -> None:
    python.write("leaf.py", SHOWS_ITSELF)
    python.write(
        "app.py",
        """
        import subprocess, sys
        code = "import subprocess, sys; subprocess.run([sys.executable, 'leaf.py', 'deep'])"
        for words in (["leaf.py", "flat"], ["-c", code]):
            subprocess.run([sys.executable, *words], check=True)
        """,
    )
    assert python.prints(*RUN, "app.py").split("\n") == ["flat True", "deep True"]


def test_processes_of_multiprocessing_are_reached(python: Interpreter) -> None:
    python.write(
        "app.py",
        """
        import multiprocessing, sys

        class Question:
            pass

        def answer(question):
            import psycopg_pool
            assert isinstance(question, Question)
            return psycopg_pool.__spec__.origin.endswith("standin.py")

        if __name__ == "__main__":
            for method in multiprocessing.get_all_start_methods():
                if method != "fork":
                    with multiprocessing.get_context(method).Pool(1) as processes:
                        print(method, processes.apply(answer, [Question()]))
        """,
    )
    answers = python.prints(*RUN, "app.py").split("\n")
    assert "spawn True" in answers
    assert not [answer for answer in answers if not answer.endswith("True")]


def test_a_program_that_never_asks_for_psycopg_pool_loads_nothing(python: Interpreter) -> None:
    code = """
import importlib.metadata, sys
importlib.metadata.version("psycopg")
print(sorted(name for name in sys.modules if name.startswith(("psycopg", "fastpool"))))
"""
    assert python.prints(*RUN, "-c", code) == "[]"


def test_metadata_is_answered_before_anything_is_imported(
    without_psycopg_pool: Interpreter,
) -> None:
    code = "import importlib.metadata as m, sys; print(m.version('psycopg_pool'), *sys.modules)"
    version, *loaded = without_psycopg_pool.prints(*RUN, "-c", code).split()
    assert version == "3.3.3"
    assert "psycopg" not in loaded


def test_a_program_may_install_for_itself(python: Interpreter) -> None:
    code = "import fastpool; fastpool.install(); fastpool.install(); import psycopg_pool"
    for program in (code, f"import psycopg_pool; {code}"):
        assert python.prints(*RUN, "-c", program) == ""


def test_run_may_run_run(python: Interpreter) -> None:
    python.write("leaf.py", SHOWS_ITSELF)
    code = "import os, sys; print(sum('startup' in entry for entry in sys.path))"
    assert python.prints(*RUN, *RUN, *RUN, "leaf.py", "x") == "x True"
    assert python.prints(*RUN, *RUN, "-c", code) == "1"


def test_a_sitecustomize_of_the_users_runs_once(python: Interpreter) -> None:
    python.write("site/sitecustomize.py", "import sys; sys.path.append('/added'); print('site')")
    path = os.pathsep.join([str(python.folder / "site"), python.environment["PYTHONPATH"]])
    code = "import sitecustomize as s, sys; print(s.__file__, s.__name__, sys.path[-1])"
    alone = python.prints("-c", code, PYTHONPATH=path)
    # The first line is that of the Python that runs `run`.
    assert python.prints(*RUN, "-c", code, PYTHONPATH=path) == f"site\n{alone}"


def test_a_sitecustomize_that_hands_on_is_handed_to_once(python: Interpreter) -> None:
    """Another tool's folder on PYTHONPATH, which works as ours does."""
    text = """
        import os, sys
        from importlib.machinery import PathFinder
        print("theirs")
        others = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
        spec = PathFinder.find_spec("sitecustomize", others)
        if spec is not None:
            spec.loader.exec_module(type(sys)("sitecustomize"))
        """
    python.write("theirs/sitecustomize.py", text)
    path = os.pathsep.join([str(python.folder / "theirs"), python.environment["PYTHONPATH"]])
    alone = python.prints("-c", "", PYTHONPATH=path)
    assert python.prints(*RUN, "-c", "", PYTHONPATH=path) == f"{alone}\n{alone}"


@pytest.mark.parametrize("code", ["raise ValueError('no')", "import no_such_module"])
def test_a_sitecustomize_that_fails_fails_as_it_would_without_us(
    python: Interpreter, code: str
) -> None:
    python.write("site/sitecustomize.py", code)
    path = os.pathsep.join([str(python.folder / "site"), python.environment["PYTHONPATH"]])
    alone = python("-c", "print(1)", environment={"PYTHONPATH": path})
    run = python(*RUN, "-c", "print(1)", environment={"PYTHONPATH": path})
    assert "Error in sitecustomize" in alone.stderr
    assert (run.stdout, run.stderr) == (alone.stdout, alone.stderr * 2)


def test_the_python_of_another_environment_is_left_alone(python: Interpreter, bare: Path) -> None:
    python.write("theirs/psycopg_pool.py", "print('their own')")
    python.write("fastpool/README", "a folder that happens to have the name")
    code = f"""
import os, subprocess
path = os.environ["PYTHONPATH"].split(os.pathsep)[0]
assert path.endswith("startup")
path += os.pathsep + "theirs"
subprocess.run(
    [{str(bare)!r}, "-c", "import psycopg_pool"],
    env=dict(os.environ, PYTHONPATH=path),
    check=True,
)
"""
    assert python.prints(*RUN, "-c", code) == "their own"


def test_fastpool_is_found_where_run_found_it(tmp_path: Path, python: Interpreter) -> None:
    """In the folder where it was called, like a checkout: there, a script does not look."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "fastpool").symlink_to(Path(fastpool.__file__).parent)
    python.folder = checkout
    script = python.write("../elsewhere/leaf.py", "import psycopg_pool; print(psycopg_pool)")
    shown = python.prints(*RUN, script, PYTHONPATH=str(Path(psycopg.__file__).parents[1]))
    assert str(checkout) in shown


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_run_refuses_options_that_would_keep_it_out(
    without_psycopg_pool: Interpreter, option: str
) -> None:
    """Before they are passed on: the program would silently have psycopg_pool."""
    packages = without_psycopg_pool.environment["PYTHONPATH"]
    code = f"import sys; sys.path.append({packages!r}); sys.argv[1:] = ['run', 'x.py']"
    code += "; from fastpool.__main__ import main; sys.exit(main())"
    done = without_psycopg_pool(option, "-c", code)
    assert done.returncode == 2
    assert "with -I, -E or -S" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to run"),
        ([""], "there is nothing to run"),
        (["-W", "error", "app.py"], "-W is no program; options for Python go before"),
        (["-I", "app.py"], "-I is no program"),
        (["--", "app.py"], "-- is no program"),
    ],
)
def test_run_says_what_is_wrong_with_a_call(
    python: Interpreter, words: list[str], message: str
) -> None:
    done = python(*RUN, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("usage: python -m fastpool run")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_what_run_does_not_reach(python: Interpreter, option: str) -> None:
    shown = python.prints(*RUN, option)
    for word in ("-I, -E and -S", "PYTHONPATH", "sudo", "virtual environment", "exit codes"):
        assert word in shown
    assert "run a program with fastpool" in python.prints("-m", "fastpool", "--help")
