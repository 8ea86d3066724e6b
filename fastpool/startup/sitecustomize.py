"""What every Python started below `python -m fastpool run` executes first, as its sitecustomize.

Owns: making fastpool answer imports of psycopg_pool, and handing on to the sitecustomize that this
one hides. Refuses: to import fastpool, or psycopg: a program that never imports psycopg_pool pays
for neither.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from types import ModuleType

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _serve() -> None:
    """Execute standin.py without the package around it, which would import psycopg."""
    path = os.path.join(os.path.dirname(_FOLDER), "standin.py")
    standin = ModuleType("fastpool_standin")
    standin.__file__ = path
    SourceFileLoader(standin.__name__, path).exec_module(standin)
    standin.serve()


def _hand_on() -> None:
    """Import the next sitecustomize on the path, if there is one, under its own name."""
    place = sys.path.index(_FOLDER) if _FOLDER in sys.path else None
    if place is not None:
        # Others hand on in this way too. None must find the way back.
        del sys.path[place]
    ours = sys.modules.pop("sitecustomize")
    try:
        import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours
    finally:
        if place is not None:
            # Programs make their children's PYTHONPATH of this path.
            sys.path.insert(place, _FOLDER)


_serve()
_hand_on()
