"""Make a pretrained decoder LLM smaller: adaptive structural pruning, rebuilt as an ordinary checkpoint.

>>> import prunekit
>>> source = prunekit.resolve("smollm2-135m")  # doctest: +SKIP
>>> plan = prunekit.make_plan(source, blocks=0.8)  # doctest: +SKIP
>>> prunekit.prune(source, "smaller", plan=plan)  # doctest: +SKIP
>>> prunekit.evaluate("smaller", baseline=source).perplexity  # doctest: +SKIP
>>> prunekit.export_model("smaller", "gguf", "smaller-gguf", dtype="q4_k_m")  # doctest: +SKIP
"""

from __future__ import annotations

from prunekit.utils.process.working_folder import leave_working_folder

leave_working_folder()  # before anything else is looked for

from importlib import import_module  # noqa: E402
from importlib.metadata import PackageNotFoundError, version  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from prunekit.utils.process.own_command import is_command  # noqa: E402

if TYPE_CHECKING:
    from prunekit.checkpoint.rebuild import rebuild
    from prunekit.errors import PrunekitError
    from prunekit.evaluation.acceptance.run import accept
    from prunekit.evaluation.check import check
    from prunekit.evaluation.run import evaluate
    from prunekit.export.export import export_model
    from prunekit.kernels import generate, optimize
    from prunekit.models.source import resolve
    from prunekit.monitoring.baseline.make import watch_init
    from prunekit.monitoring.running.run import watch_run
    from prunekit.pipeline import make_plan, prune, recover
    from prunekit.pipeline.candidates.run import candidates
    from prunekit.plan import Plan
    from prunekit.profiling.run import bench
    from prunekit.profiling.server.run import bench_server
    from prunekit.report.write import write_report
    from prunekit.utils.phases.telling import progress

__all__ = [
    "Plan",
    "PrunekitError",
    "accept",
    "bench",
    "bench_server",
    "candidates",
    "check",
    "evaluate",
    "export_model",
    "generate",
    "make_plan",
    "optimize",
    "progress",
    "prune",
    "rebuild",
    "recover",
    "resolve",
    "watch_init",
    "watch_run",
    "write_report",
]
_HOME = {
    "Plan": "plan",
    "PrunekitError": "errors",
    "accept": "evaluation.acceptance.run",
    "bench": "profiling.run",
    "bench_server": "profiling.server.run",
    "candidates": "pipeline.candidates.run",
    "check": "evaluation.check",
    "evaluate": "evaluation.run",
    "export_model": "export.export",
    "generate": "kernels",
    "make_plan": "pipeline",
    "optimize": "kernels",
    "progress": "utils.phases.telling",
    "prune": "pipeline",
    "rebuild": "checkpoint.rebuild",
    "recover": "pipeline",
    "resolve": "models.source",
    "watch_init": "monitoring.baseline.make",
    "watch_run": "monitoring.running.run",
    "write_report": "report.write",
}

try:
    __version__ = version("prunekit")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first asked for: to plan, nobody needs what exports."""
    if name not in _HOME:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    return getattr(import_module(f"prunekit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if is_command():
    from prunekit.utils.process.stopping import stop_quietly

    stop_quietly()
# The kernels need torch and Triton only: on a bare GPU machine they can be checked without transformers.
elif find_spec("transformers") is not None:
    # So that AutoModelForCausalLM.from_pretrained opens pruned checkpoints after a mere `import prunekit`.
    from prunekit.models.modeling import register_pruned

    register_pruned()
