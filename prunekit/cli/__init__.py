"""The ``prunekit`` command: one module a command."""

from prunekit.cli.commands import analyze, plan, inspect, evaluate, generate, export, bench, latency_table, demo  # noqa: F401, I001  (importing a command registers it)
from prunekit.cli.common import app, main

__all__ = ["app", "main"]
