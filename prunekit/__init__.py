"""Make a pretrained decoder LLM smaller: adaptive structural pruning, rebuilt as an ordinary checkpoint."""

from __future__ import annotations

import sys

from prunekit.utils.process.working_folder import leave_working_folder

leave_working_folder()  # before anything else is looked for

from importlib.metadata import PackageNotFoundError, version  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402

try:
    __version__ = version("prunekit")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0.0.0"


def _is_command() -> bool:
    """True in the process of the ``prunekit`` command, which registers when it loads a model.

    Registering imports torch and nine families' modelling, which `prunekit --help` need not wait for.
    """
    if sys.argv and Path(sys.argv[0]).name in ("prunekit", "prunekit.exe"):
        return True
    # `python -m prunekit` imports this file before argv[0] is the path of __main__.
    asked = sys.orig_argv
    return "-m" in asked and asked[asked.index("-m") + 1 :][:1] == ["prunekit"]


if _is_command():
    from prunekit.utils.process.stopping import stop_quietly

    stop_quietly()
# The kernels need torch and Triton only: on a bare GPU machine they can be checked without transformers.
elif find_spec("transformers") is not None:
    # So that AutoModelForCausalLM.from_pretrained opens pruned checkpoints after a mere `import prunekit`.
    from prunekit.models.modeling import register_pruned

    register_pruned()
