"""An ``onnx`` export with uniform KV heads in optimum-onnx's ORTModelForCausalLM, which needs an older transformers.

    python ortmodel_check.py write FOLDER   # where prunekit is installed
    python ortmodel_check.py run FOLDER     # after pip install torch==2.13.0, then optimum-onnx[onnxruntime]==0.1.0

``write`` exports pruned models whose layers differ in query heads and FFN width, and notes the tokens that PyTorch
makes; ``run`` generates with ORTModelForCausalLM and compares. Exits with 1 where they differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
HEADS = (8, 6, 4, 2)
KV_HEADS = 2
FFN = (501, 333, 77, 512)
TOKENS = 16
# Of different lengths, so that a batch of them is padded on the left.
PROMPTS = ((5, 17, 200, 31, 9, 77, 123), (301, 4, 88), (19, 250, 47, 11, 300))
EXPECTED = "expected.json"


def write(folder: Path) -> None:
    sys.path[:0] = [str(Path(__file__).parents[3])]
    import torch

    from prunekit.export.export import export
    from prunekit.export.target import Options
    from prunekit.models.families import FAMILIES as KNOWN
    from prunekit.models.source import load_model, resolve
    from prunekit.plan import LayerKeep, Plan
    from tests.support.export_models import byte_tokenizer, dense_config
    from tests.support.tiny import rebuilt_model, tiny_model

    for family in FAMILIES:
        dense = tiny_model(family, config=dense_config(family, num_key_value_heads=KV_HEADS))
        shape = KNOWN[family].shape(dense.config)
        group = shape.layers[0].group_size
        kept = [
            LayerKeep(
                index,
                tuple(range(KV_HEADS)),
                tuple(kv * group + head for kv in range(KV_HEADS) for head in range(heads // KV_HEADS)),
                tuple(range(width)),
            )
            for index, (heads, width) in enumerate(zip(HEADS, FFN, strict=True))
        ]
        checkpoint = folder / family / "checkpoint"
        rebuilt_model(dense, Plan(shape, tuple(kept))).save_pretrained(checkpoint)
        byte_tokenizer().save_pretrained(checkpoint)
        source = resolve(str(checkpoint))
        made = export(source, "onnx", folder / family / "onnx", Options(), overwrite=True)
        assert made.written.facts["loads_in_optimum"] is True
        model: Any = load_model(source, dtype="float32", device="cpu")
        expected = []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            with torch.no_grad():
                text = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
            expected.append(text[0, len(prompt) :].tolist())
        (folder / family / EXPECTED).write_text(json.dumps(expected))


def run(folder: Path) -> int:
    import torch
    import transformers
    from optimum.onnxruntime import ORTModelForCausalLM

    wrong = 0
    for family in FAMILIES:
        expected = json.loads((folder / family / EXPECTED).read_text())
        # What binds outputs needs their shapes in advance, so both ways are tried.
        for binding in (False, True):
            model = ORTModelForCausalLM.from_pretrained(folder / family / "onnx", use_io_binding=binding)
            alone = [_generate(torch, model, [prompt])[0] for prompt in PROMPTS]
            together = _generate(torch, model, list(PROMPTS))
            for what, made in (("one by one", alone), ("as a padded batch", together)):
                pairs = [pair for rows in zip(made, expected, strict=True) for pair in zip(*rows, strict=True)]
                same, of = sum(a == b for a, b in pairs), len(pairs)
                wrong += same != of
                print(f"{family}, io_binding={binding}, {what}: {same} of {of} tokens equal")
    print(f"transformers {transformers.__version__}: {'differs' if wrong else 'all equal'}")
    return 1 if wrong else 0


def _generate(torch: Any, model: Any, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return made[:, longest:].tolist()


if __name__ == "__main__":
    command, where = sys.argv[1:]
    sys.exit(write(Path(where)) if command == "write" else run(Path(where)))
