"""The ``prunekit`` command: one module a command."""

from prunekit.cli import bench, evaluate  # noqa: F401  (importing a command registers it)
from prunekit.cli.common import app, main

__all__ = ["app", "main"]
