"""prunekit's plug-in, announced to vLLM from the source tree, whatever is installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "prunekit.export.formats.vllm.plugin:register"


def announce(folder: Path) -> dict[str, str]:
    """Fill ``folder`` with what an installed prunekit looks like, and return the environment of a process, and of all
    that vLLM starts from it, that finds it there."""
    package = folder / "prunekit"
    package.mkdir()
    parts = [path for path in (ROOT / "prunekit").iterdir() if path.name != "__pycache__"]
    for part in (*parts, ROOT / "kernels", ROOT / "export"):
        (package / part.name).symlink_to(part)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    facts = folder / "prunekit-0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: prunekit\nVersion: 0\n")
    (facts / "entry_points.txt").write_text(f"[vllm.general_plugins]\nprunekit = {PLUGIN}\n")
    made = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if find_spec("flashinfer") is None:
        # vLLM 0.26 imports it for sampling unless it is told not to.
        made.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    return made
