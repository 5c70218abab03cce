"""The ``prunekit`` command: one module a command, which importing registers."""

# In the order in which help lists them.
# isort: off
from prunekit.cli.commands import analyze  # noqa: F401
from prunekit.cli.commands.decide import candidates  # noqa: F401
from prunekit.cli.commands import plan, prune, recover, methods, inspect, evaluate, generate, export  # noqa: F401
from prunekit.cli.commands import bench, latency_table  # noqa: F401
from prunekit.cli.commands.operate import bench_server, accept, watch  # noqa: F401
from prunekit.cli.commands.decide import report  # noqa: F401
from prunekit.cli.commands import demo  # noqa: F401

# isort: on
from prunekit.cli.common import app, main

__all__ = ["app", "main"]
