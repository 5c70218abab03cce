"""What `import prunekit` does on the way: transformers learns the classes of pruned models, or a command gets ready."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def _is_command() -> bool:
    """True in the process of the ``prunekit`` command, which registers when it loads a model.

    Registering imports torch and nine families' modelling, which `prunekit --help` need not wait for.
    """
    if sys.argv and Path(sys.argv[0]).name in ("prunekit", "prunekit.exe"):
        return True
    # `python -m prunekit` imports this file before argv[0] is the path of __main__.
    asked = sys.orig_argv
    return "-m" in asked and asked[asked.index("-m") + 1 :][:1] == ["prunekit"]


def get_ready() -> None:
    """Stop quietly where this process is the command's, else register the classes of pruned checkpoints."""
    if _is_command():
        from prunekit.utils.process.stopping import stop_quietly

        stop_quietly()
    # The kernels need torch and Triton only: on a bare GPU machine they can be checked without transformers.
    elif find_spec("transformers") is not None:
        # So that AutoModelForCausalLM.from_pretrained opens pruned checkpoints after a mere `import prunekit`.
        from prunekit.models.modeling import register

        register()
