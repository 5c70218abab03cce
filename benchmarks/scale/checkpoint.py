"""A checkpoint on disk with random weights in the shape of a real model, written a shard at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.models.shapes import Model
from prunekit.models.source import resolve
from prunekit.models.stored_weights import HEAD, expected_tensors
from prunekit.models.tokenizer.files import copy_tokenizer

_SHARD_BYTES = 2 << 30
# Drawing eight thousand million numbers takes minutes, so that tensors are stretches of so many, each from another
# place on.
_DRAWN = 1 << 26
_STEP = 7_919_119


def write_checkpoint(model: Model, folder: Path, seed: int = 0) -> None:
    """Write ``model`` in bfloat16 into the new ``folder``: weights of standard deviation 0.02, norms about 1, and the
    tokenizer of the built-in model, whose tokens are fewer than the vocabulary. Needs the memory of two shards."""
    folder.mkdir(parents=True)
    config = model.dense_config()
    config.architectures = [model.family.causal_lm_class]
    config.dtype = "bfloat16"
    copy_tokenizer(resolve("smollm2-135m"), folder, config=config)
    shards: list[dict[str, torch.Tensor]] = [{}]
    weight_map, size = {}, 0
    files: list[str] = []

    def flush() -> None:
        name = f"model-{len(files) + 1:05d}.safetensors"
        save_file(shards[0], folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shards[0], name))
        files.append(name)
        shards[0] = {}

    for name, tensor in _tensors(model, seed):
        if size + tensor.nbytes > _SHARD_BYTES and shards[0]:
            flush()
            size = 0
        shards[0][name] = tensor
        size += tensor.nbytes
    flush()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(folder)


def _tensors(model: Model, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    drawn = torch.randn(_DRAWN, generator=torch.Generator().manual_seed(seed)).mul_(0.02).bfloat16()
    begin = 0
    named = [*expected_tensors(model.family, model.shape)]
    if not model.shape.tie_word_embeddings:
        named.append((HEAD, (model.shape.vocab_size, model.shape.hidden_size)))
    for name, size in named:
        count = torch.Size(size).numel()
        pieces, left = [], count
        while left:
            begin = (begin + _STEP) % _DRAWN
            pieces.append(drawn[begin : begin + left])
            left -= pieces[-1].numel()
        values = torch.cat(pieces).view(size)
        yield name, values + 1 if "norm" in name else values
