"""How long threads of PyTorch that have nothing to do keep a core busy."""

from __future__ import annotations

import os

# In turns of a loop; libgomp's own choice is 300,000 where there are as many CPUs as threads, whoever else uses them.
_TURNS = "10000"


def wait_briefly() -> None:
    """Have threads that wait for each other sleep after a moment, unless the environment says how long they shall wait.
    To be called before PyTorch is imported, whose OpenMP library reads it once.

    Between two products they come back at once. But where other programs want the cores, those that wait take them from
    the very thread that is waited for.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS)
