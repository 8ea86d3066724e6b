"""`python -m fastpool run`: a program with fastpool in psycopg_pool's place, unedited.

Owns: the command line and the environment of the Python that runs the program. Refuses: to run it
in this process. A Python of its own gives the program all that it would have without fastpool: its
`__main__`, its path, its tracebacks, its signals, its exit code.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HELP = "run a program with fastpool in psycopg_pool's place"
_USAGE = "python -m fastpool run (SCRIPT | -m MODULE | -c CODE | -) [ARGUMENT ...]"
_DESCRIPTION = """\
Run a Python program in which `import psycopg_pool` gives fastpool. Everything
else is as if python had been called with the same words: arguments, path,
exit code. The Python programs that it starts get fastpool too.

  python -m fastpool run app.py --port 8000
  python -m fastpool run -m gunicorn app:app
  python -m fastpool run -c "import psycopg_pool; print(psycopg_pool)"

Python's own options go before -m: python -X dev -m fastpool run app.py"""
_EPILOG = """\
It works through PYTHONPATH: a sitecustomize there answers the imports, then
hands on to your own sitecustomize, if you have one. So it does not reach
  - python -I, -E and -S, which ignore PYTHONPATH or sitecustomize
  - programs started without the environment (sudo, env -i), or with a
    PYTHONPATH that replaces this one
  - the Python of a virtual environment that has no fastpool
These go on with psycopg_pool. Where you can edit the program, call
fastpool.install() before anything imports psycopg_pool.

exit codes: the program's; 2 wrong usage"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `run` command to *commands*."""
    parser = commands.add_parser(
        "run",
        help=HELP,
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Without a prefix no word is an option: they are the program's, all of them.
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(handler=lambda args: run(parser, args.words))


def run(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Run Python on *words*, a program and its arguments, and return the exit code.

    Except on Windows the program takes the place of this process, and nothing returns. Exits with
    2 for words that are no program.
    """
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        parser.print_help()
        return 0
    if not first:
        parser.error("there is nothing to run")
    if first.startswith("-") and first != "-" and not first.startswith(("-m", "-c")):
        parser.error(f"{first} is no program; options for Python go before -m fastpool")
    if sys.flags.ignore_environment or sys.flags.no_site:
        parser.error("with -I, -E or -S, Python would not let fastpool in: call it without")
    command = [sys.executable, *python_options(), *words]
    environment = os.environ | {"PYTHONPATH": python_path()}
    if os.name != "nt":  # there, execve() does not wait: the caller would believe it has ended
        if sys.stdout is not None:  # it is where the program was started with a closed one
            sys.stdout.flush()  # what a sitecustomize has printed would go with this process
        os.execve(sys.executable, command, environment)
    return wait_for(command, environment)


def python_options() -> list[str]:
    """Return the options that this Python was called with, those before -m fastpool."""
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    # -m and fastpool may be one word, and -m may stand behind other letters: -um fastpool
    if options[-1:] == ["fastpool"]:
        options.pop()
    last = options.pop().removesuffix("fastpool").removesuffix("m") if options else ""
    return [*options, last] if last.startswith("-") and last != "-" else options


def python_path() -> str:
    """Return the PYTHONPATH that makes a Python execute our sitecustomize."""
    package = Path(__file__).absolute().parent
    given = [entry for entry in [os.environ.get("PYTHONPATH")] if entry]
    ours = str(package / "startup")
    # python -m looks for modules where it is called, and may have found fastpool only there. A
    # script is not looked up like that.
    here = [str(package.parent)] if Path(sys.path[0]).absolute() == package.parent else []
    return os.pathsep.join([ours, *given, *here])


def wait_for(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run *command*, wait until it ends, and return its exit code.

    An interrupt from the keyboard goes to the program too, which decides what becomes of it.
    """
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
