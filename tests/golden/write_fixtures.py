"""Writes what ``written/`` holds: ``python tests/golden/write_fixtures.py FOLDER``.

It is kept to show how the fixtures came about. Those in ``written/`` are of the first version and stay: that later
versions read them is what tests/golden/test_written_before.py tests.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(HERE.parents[1]))

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import prunekit  # noqa: F401  (registers the classes of per-layer checkpoints)
from prunekit.export.export import read_export
from tests.golden.golden import run_command, set_weights
from tests.support.command import write_text
from tests.support.export_models import byte_tokenizer
from tests.support.tiny import one_thread, tiny_model

IDS = [7, 41, 100, 3, 250, 19, 19, 88, 201, 5]
TOKENS = 12
SHORT = (
    "--set",
    "sequences=8",
    "--set",
    "length=32",
    "--set",
    "ffn_multiple=1",
    "--device",
    "cpu",
    "--dtype",
    "float32",
)
FIELDS = {
    "layers": 2,
    "tied": True,
    "vocab_size": 260,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "bos_token_id": 0,
}


def write(folder: Path) -> None:
    base, text = str(folder / "base"), str(folder / "text.txt")
    model = tiny_model("llama", **FIELDS)
    set_weights(model)
    with torch.no_grad():
        for layer in model.model.layers:
            # Else the tied head repeats the last token for ever.
            layer.self_attn.o_proj.weight.mul_(4)
            layer.mlp.down_proj.weight.mul_(16)
    model.to(torch.bfloat16).save_pretrained(base)
    byte_tokenizer(FIELDS["vocab_size"]).save_pretrained(base)
    write_text(Path(text), 4000)
    reading = ("--calib", text, *SHORT)
    sliced = ("prune", base, "--method", "fisher-global", "--blocks", "0.7", *reading)
    run_command(*sliced, "-o", str(folder / "per-layer"))
    run_command(*sliced, "--layout", "uniform", "-o", str(folder / "uniform"))
    bare = (
        "--method",
        "prunekit",
        "--set",
        "refit=false",
        "--set",
        "units=ffn,attention-layer,ffn-layer",
        "--blocks",
        "0.4",
    )
    run_command("prune", base, *bare, *reading, "-o", str(folder / "sublayers"))
    run_command("plan", base, "--blocks", "0.7", *reading, "-o", str(folder / "plan.json"))
    measuring = ("--length", "64", "--widths", "3", "--repeats", "11", "--threads", "1", "--device", "cpu")
    run_command("latency-table", base, *measuring, "-o", str(folder / "latency.json"))
    with tempfile.TemporaryDirectory() as scratch:
        goal = ("--method", "prunekit", "--set", "refit=false", "--latency", "0.95", "--latency-table")
        run_command("plan", base, *goal, str(folder / "latency.json"), *reading, "-o", f"{scratch}/plan.json")
        by_latency = _widths(Path(scratch) / "plan.json")
        for target in ("hf", "onnx", "gguf", "torchscript", "torch-export", "vllm"):
            dtype = {"hf": "bf16", "gguf": "f32"}.get(target, "auto")
            out = Path(scratch) / target
            run_command("export", str(folder / "per-layer"), "--to", target, "--dtype", dtype, "-o", str(out))
            kept = folder / "exports" / target
            if target in ("onnx", "gguf"):
                shutil.copytree(out, kept)
                continue
            # The others are large for what they are: their manifests.
            kept.mkdir(parents=True)
            shutil.copy(out / "prunekit-export.json", kept)
    expected = {
        "ids": IDS,
        "logits": {name: _logits(folder / name) for name in ("per-layer", "uniform", "sublayers")},
        "tokens": {name: _tokens(folder / "exports" / name) for name in ("onnx", "gguf")},
        "widths": {"plan.json": _widths(folder / "plan.json"), "latency.json": by_latency},
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def _widths(plan: Path) -> list[list[int]]:
    shapes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    return [[layer[name] for name in shapes] for layer in json.loads(plan.read_text())["layers"]]


def _logits(folder: Path) -> list[float]:
    """Of the last position."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return [round(value, 6) for value in model(torch.tensor([IDS])).logits[0, -1].tolist()]


def _tokens(folder: Path) -> list[int]:
    with read_export(folder, own=True).open() as runner:
        return [int(token) for token in runner.greedy(np.array([IDS]), TOKENS).tokens[0]]


if __name__ == "__main__":
    with one_thread():
        write(Path(sys.argv[1]))
