"""`python -m fastpool <command>`: hand the command line to the module that owns the command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import fastpool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that *argv* names and return its exit code; argparse exits with 2."""
    from fastpool import run
    from fastpool.demo import command as demo
    from fastpool.doctor import command as doctor

    parser = argparse.ArgumentParser(
        prog="python -m fastpool", description="fastpool: a connection pool for psycopg 3."
    )
    parser.add_argument("--version", action="version", version=f"fastpool {fastpool.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo.add_parser(commands)
    run.add_parser(commands)
    doctor.add_parser(commands)
    args = parser.parse_args(argv)
    handler: Callable[[argparse.Namespace], int] = args.handler
    return handler(args)


if __name__ == "__main__":
    try:
        code = main()
    except BrokenPipeError:
        # Whoever read the output has left. The exit would flush it once more, into a closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
