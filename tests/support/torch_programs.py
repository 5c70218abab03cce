"""What the tests of PyTorch's own formats share: running the README's snippet alone, comparing graphs with PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from prunekit.export.formats.pytorch.forward import torch_inputs
from prunekit.export.formats.pytorch.runner import GraphRunner
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, load_model
from tests.support.cached_forward import CachedForward

_ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "prunekit", "optimum"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
"""


def readme_snippet(folder: Path) -> str:
    match = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert match, "the README has no snippet"
    return match[1]


def run_alone(folder: Path, env: dict[str, str] | None = None) -> str:
    """What the README's snippet prints, run beside the files where transformers and prunekit can't be imported."""
    made = subprocess.run(
        [sys.executable, "-c", _ALONE + readme_snippet(folder)], cwd=folder, env=env, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.rstrip("\n")


def expected_answer(source: Source) -> str:
    """What the snippet must print: PyTorch's 20 likeliest tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source.path / "tokenizer.json"))
    ids = tokenizer.encode("The meaning of life is").ids
    runner = TorchRunner(load_model(source, dtype="float32", device="cpu"))
    return tokenizer.decode(runner.greedy(torch.tensor([ids]).numpy(), 20).tokens[0].tolist()).rstrip("\n")


def largest_difference(runner: GraphRunner, source: Source, sizes: Iterable[tuple[int, int, int]]) -> float:
    """Between ``runner``'s graph and PyTorch, of logits and caches, over (batch, length, past); the first sequence of
    each batch of several is padded on its left."""
    wanted = CachedForward(load_model(source, dtype="float32", device="cpu"))
    worst = 0.0
    for batch, length, past in sizes:
        for kept in {length, 1}:
            ids, mask, positions, at, *cache = torch_inputs(
                source.shape, batch=batch, length=length, past=past, kept=kept, dtype=torch.float32
            )
            seen = mask.clone()
            if batch > 1 and past + length > 2:
                seen[0, :2] = 0
            with torch.inference_mode():
                made = _graph(runner)(ids, seen, positions, at, *cache)
                logits, *caches = wanted(ids, seen, positions, *cache)
            assert made[0].shape == (batch, kept, source.shape.vocab_size)
            # Queries that see nothing but padding have no right answer, and what follows from them neither.
            valid = seen[:, past:].bool()
            gaps = [(made[0] - logits[:, at])[valid[:, at]]]
            for ours, theirs in zip(made[1:], caches, strict=True):
                assert ours.shape == theirs.shape
                gaps.append((ours - theirs).transpose(1, 2)[seen.bool()])
            worst = max(worst, *(float(gap.abs().max()) for gap in gaps if gap.numel()))
    return worst


def _graph(runner: GraphRunner) -> Any:
    assert runner._graph is not None
    return runner._graph


# (batch, length, past)
SIZES = ((1, 1, 0), (1, 200, 0), (3, 33, 0), (1, 1, 1), (2, 1, 40), (3, 5, 17), (1, 64, 130))


def save_with_rope(folder: Path, **rope: Any) -> Path:
    """A tiny uneven Llama whose RoPE is as given."""
    from tests.support.export_models import save_uneven

    return save_uneven(folder, "llama", rope_parameters={"rope_theta": 10000.0, **rope})


def damaged(job: Any, dtype: str) -> Any:
    """The job's model with one weight changed, as a writer's mistake would."""
    model = load_model(job.source, dtype=dtype, device="cpu")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, 3:5] *= -1
    return model


__all__ = [
    "SIZES",
    "damaged",
    "expected_answer",
    "largest_difference",
    "readme_snippet",
    "run_alone",
    "save_with_rope",
]
