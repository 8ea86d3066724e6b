"""HikariCP on the JVM, with PostgreSQL's JDBC driver, through the same socket as the others.

The pool and the loops around it are bench/hikari/'s, compiled when first needed; one JVM runs them
for the whole session, a round at a time when it is asked to. Settings: the sizes; the rest are
HikariCP's defaults, and those of the JVM but a limit to its heap.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from ..depth import Point
from ..rounds import Round
from .pool import Pool, Settings

_SOURCES = Path(__file__).parent.parent / "hikari"
# Where Debian's libhikaricp-java, libpostgresql-jdbc-java and what they need put theirs.
_JARS = Path("/usr/share/java")
_PACKAGES = "libhikaricp-java libpostgresql-jdbc-java default-jdk-headless"
_NEEDED = ("HikariCP.jar", "postgresql.jar", "slf4j-api.jar", "slf4j-nop.jar")


class HikariCP(Pool):
    """com.zaxxer.hikari.HikariDataSource, in a JVM of its own."""

    name = "hikaricp"

    @classmethod
    def missing(cls) -> str | None:
        programs = [f"no {name}" for name in ("java", "javac") if shutil.which(name) is None]
        jars = [f"no {_JARS / name}" for name in _NEEDED if not (_JARS / name).exists()]
        lacks = ", ".join(programs + jars)
        return f"{lacks}: apt-get install {_PACKAGES}" if lacks else None

    @classmethod
    def version(cls) -> str:
        names = sorted(path.stem for path in _JARS.glob("HikariCP-*.jar"))
        return names[-1].rpartition("-")[2] if names else "unknown"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._jvm = _jvm(settings.dsn)
        self._jvm.ask(do="open", size=settings.max_size)

    def close(self) -> None:
        self._jvm.ask(do="close")

    def _cycle(self, scenario: str, n: int) -> float:
        return float(self._jvm.ask(do="cycle", scenario=scenario, n=n)["seconds"])

    def _contend(self, point: Point, seconds: float) -> Round:
        answer = self._jvm.ask(
            do="contend",
            threads=point.clients,
            hold=point.hold,
            burners=point.burners,
            seconds=seconds,
        )
        return Round(**answer)

    def verify(self) -> None:
        self._jvm.ask(do="verify")


class _Jvm:
    """A JVM that runs bench/hikari/."""

    def __init__(self, dsn: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fastpool-bench-")
        classes = self._directory.name
        jars = ":".join(str(_JARS / name) for name in _NEEDED)
        sources = sorted(str(path) for path in _SOURCES.glob("*.java"))
        subprocess.run(["javac", "-d", classes, "-cp", jars, *sources], check=True)
        self._process = subprocess.Popen(
            ["java", "-Xmx1g", "-cp", f"{classes}:{jars}", "Rounds", *_jdbc(dsn)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.about = self._read()

    def ask(self, **order: object) -> dict[str, Any]:
        """Have it carry out *order*, and return its answer. Raises AssertionError if it fails."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the JVM has ended"
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, f"HikariCP: {answer['error']}"
        return answer

    def close(self) -> None:
        """End it, and wait until it has."""
        with self._process:
            pass
        self._directory.cleanup()


@cache
def _jvm(dsn: str) -> _Jvm:
    jvm = _Jvm(dsn)
    atexit.register(jvm.close)
    return jvm


def _jdbc(dsn: str) -> tuple[str, str, str]:
    """Return the JDBC URL, user and password for libpq's *dsn*."""
    about = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    host, port = about.get("host", "localhost"), about.get("port", "5432")
    url = f"jdbc:postgresql://{host}:{port}/{about.get('dbname', 'postgres')}"
    if host.startswith("/"):
        url = f"jdbc:postgresql://localhost/{about.get('dbname', 'postgres')}"
        url += f"?socketFactory=UnixSocketFactory&socketFactoryArg={host}/.s.PGSQL.{port}"
    return url, about.get("user", ""), about.get("password", "")
