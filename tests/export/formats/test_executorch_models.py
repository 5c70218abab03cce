"""Exports beside the one of test_executorch.py: half precision with windows, and the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("executorch")

from prunekit.checkpoint.rebuild import rebuild
from prunekit.export.export import export
from prunekit.export.target import Options
from prunekit.models.source import resolve
from prunekit.plan import LayerKeep, Plan
from tests.support.torch_programs import expected_answer


def test_half_precision_and_windows(uneven, tmp_path):
    source = uneven("mistral", sliding_window=8)
    made = export(source, "executorch", tmp_path / "out", Options(dtype="fp16"))
    assert made.parity.ok
    assert made.file_bytes < 0.7 * 4 * source.shape.parameters


def test_smollm2(pruned_smollm2, tmp_path):
    """Its first layers with the whole vocabulary: all thirty take minutes to lower."""
    shape = pruned_smollm2.shape
    plan = Plan(shape, tuple(LayerKeep.everything(index, shape.layers[index]) for index in range(2)))
    rebuild(pruned_smollm2, plan, tmp_path / "model")
    made = export(resolve(str(tmp_path / "model")), "executorch", tmp_path / "out")
    assert made.parity.ok and made.parity.greedy.equal == 72
    assert (Path(made.path) / "tokenizer.json").is_file()
    # ExecuTorch's own generation loop, with its own tokenizer.
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner

    pieces: list[str] = []
    runner = TextLLMRunner(str(made.path / "model.pte"), str(made.path / "tokenizer.json"))
    runner.generate(
        "The meaning of life is", GenerationConfig(max_new_tokens=20, temperature=0.0, echo=False), pieces.append
    )
    assert expected_answer(resolve(str(tmp_path / "model"))).startswith("".join(pieces))
    assert len(pieces) > 10
