"""What is shipped: an sdist that can be built, a wheel with just what runs and what types.

The sdist is made from a copy of the checkout and the wheel from that sdist, as a packager would.
The wheel is a debug build: it compiles faster, and so that kind of build is tried too.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="these tests need the checkout around them"
)


def run_python(code: str, **environment: str) -> str:
    """Run *code* in an interpreter of its own, every warning an error, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=sys.prefix,  # -c looks for modules where it runs: not in the checkout, then
        env=os.environ | environment,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def build(kind: str, source: Path, outdir: Path) -> Path:
    """Run the build frontend for *kind*, sdist or wheel, and return what it made."""
    done = subprocess.run(
        [sys.executable, "-m", "build", f"--{kind}", "-n", "-o", str(outdir), str(source)],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTPOOL_DEBUG": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = outdir.iterdir()
    return result


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    pytest.importorskip("build", reason="the build frontend comes with the test extra")
    scratch = tmp_path_factory.mktemp("sdist")
    left_out = (".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, scratch / "tree", ignore=shutil.ignore_patterns(*left_out))
    with tarfile.open(build("sdist", scratch / "tree", scratch / "dist")) as archive:
        (top,) = {name.partition("/")[0] for name in archive.getnames()}
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(scratch, **options)
    return scratch / top


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that was built from the sdist, unpacked."""
    scratch = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", sdist, scratch / "dist")) as archive:
        archive.extractall(scratch / "site")
    return scratch / "site"


@pytest.fixture(scope="module")
def wheel_metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    (path,) = wheel.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


def files(folder: Path) -> set[str]:
    """Return the paths of all files below *folder*."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(300)
def test_the_sdist_holds_every_source_and_nothing_generated(sdist: Path) -> None:
    shipped = files(sdist)
    sources = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyx", "*.pxd", "*.pyi", "*.h", "py.typed")
        for path in (ROOT / "fastpool").rglob(pattern)
    }
    assert "fastpool/_core.pyx" in sources
    assert sources <= shipped
    assert {"LICENSE", "README.md", "setup.py", "pyproject.toml", "Makefile"} <= shipped
    assert "tests/test_packaging.py" in shipped
    assert {name for name in shipped if name.endswith((".c", ".so", ".pyd", ".pyc"))} == set()


@pytest.mark.timeout(300)
def test_a_wheel_of_the_sdist_holds_what_runs_and_what_types(wheel: Path) -> None:
    shipped = {name for name in files(wheel) if ".dist-info/" not in name}
    modules = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "*.pxd", "py.typed")
        for path in (ROOT / "fastpool").rglob(pattern)
    }
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert "fastpool/py.typed" in modules
    built = {f"fastpool/{path.stem}{suffix}" for path in (ROOT / "fastpool").glob("*.pyx")}
    assert f"fastpool/_core{suffix}" in built
    assert shipped == modules | built


@pytest.mark.timeout(300)
def test_a_wheel_of_the_sdist_imports_without_a_warning(wheel: Path) -> None:
    code = "import fastpool, fastpool._fastpath; print(fastpool._fastpath.__file__)"
    assert Path(run_python(code, PYTHONPATH=str(wheel))).is_relative_to(wheel)


@pytest.mark.timeout(300)
def test_the_wheel_says_what_it_needs(wheel_metadata: Message) -> None:
    assert wheel_metadata["Name"] == "fastpool"
    assert wheel_metadata["License-Expression"] == "MIT"
    assert wheel_metadata["Requires-Python"] == ">=3.10"
    needs = wheel_metadata.get_all("Requires-Dist", [])
    names = {re.match(r"[\w-]+", need)[0] for need in needs if "extra ==" not in need}
    assert names == {"psycopg", "typing-extensions"}


@pytest.mark.timeout(300)
def test_the_version_is_told_once(wheel_metadata: Message) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (written,) = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
    assert wheel_metadata["Version"] == written
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d.+?)\]", changelog, re.MULTILINE)[0] == written


def test_the_module_knows_the_version_that_is_installed() -> None:
    try:
        installed = metadata.version("fastpool")
    except metadata.PackageNotFoundError:
        pytest.skip("fastpool is imported from the checkout, not installed")
    assert run_python("import fastpool; print(fastpool.__version__)") == installed


@pytest.mark.skipif("PYTHONPATH" in os.environ, reason="PYTHONPATH chooses what is tested")
def test_the_tests_run_on_the_installed_package() -> None:
    import fastpool

    assert not Path(fastpool.__file__).is_relative_to(ROOT / "fastpool")


def test_the_package_needs_no_psycopg_pool() -> None:
    code = """
import sys
sys.modules["psycopg_pool"] = None  # an import of it raises
import fastpool
print(fastpool.ConnectionPool.__name__)
"""
    assert run_python(code) == "ConnectionPool"


@pytest.mark.skipif(not FREE_THREADED, reason="there is no other choice than the GIL")
def test_importing_the_package_leaves_the_gil_off() -> None:
    code = "import sys, fastpool, fastpool._fastpath; print(sys._is_gil_enabled())"
    assert run_python(code) == "False"
