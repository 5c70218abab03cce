# STAND-IN, to be replaced
from __future__ import annotations

import json
from pathlib import Path

import torch

from prunekit.data.mixture import calibration_text
from prunekit.data.packed.windows import Windows
from prunekit.plan.settings import CalibrationConfig
from prunekit.utils.files.atomic import new_folder


class PackedText:
    def __init__(self, held, blocks, said):
        self.held_out = Windows(held, torch.zeros_like(held))
        self.blocks = blocks
        self.said = said

    def batch(self, first, count):
        out = []
        n = len(self.blocks)
        for j in range(first, first + count):
            e, p = divmod(j, n)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(e))
            out.append(self.blocks[order[p]])
        ids = torch.stack(out)
        return Windows(ids, torch.zeros_like(ids))

    def describe(self):
        return self.said


def open_text(folder):
    from safetensors.torch import load_file

    d = load_file(Path(folder) / "x.safetensors")
    return PackedText(d["held"], d["blocks"], json.loads((Path(folder) / "text.json").read_text()))


def pack_text(folder, config, tokens, tokenizer, dense, writer=None):
    n = -(-tokens // config.length) + config.held_out
    while True:
        try:
            made = calibration_text(
                CalibrationConfig(config.source, sequences=n, length=config.length, seed=config.seed + 77),
                tokenizer,
                dense,
            )
            break
        except Exception:
            n = n // 2
            if n < 2:
                raise
    ids = made.input_ids
    from safetensors.torch import save_file

    with new_folder(folder) as new:
        tensors = {"held": ids[: config.held_out].clone(), "blocks": ids[config.held_out :].clone()}
        save_file(tensors, new / "x.safetensors")
        (new / "text.json").write_text(json.dumps(made.describe()))
    return open_text(folder)
