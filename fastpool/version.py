"""The version, from the installed distribution's metadata: pyproject.toml has it."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("fastpool")
except metadata.PackageNotFoundError:
    __version__ = "0.0.0.0"
