"""Whether the weights of a model folder are those that its config asks for: none missing, none other, none ignored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.models.families import Coupling, Family, unit_count, unit_rows
from prunekit.models.folder import StoredTensor
from prunekit.plan.shape import LayerShape, ModelShape

HEAD = "lm_head.weight"
_TABLE = "embed_tokens.weight"
# Tables of rotary embeddings that older releases of transformers stored; every release makes them of the config.
_HARMLESS = ("rotary_emb.inv_freq",)
_ROWS = 4096


def check_tensors(
    folder: Path, tensors: dict[str, StoredTensor], family: Family, shape: ModelShape, *, head: bool = True
) -> None:
    """Raises PrunekitError, with the tensor's name, where the weights lack one that config.json asks for, hold one of
    another shape, or hold one that the model has no place for. transformers makes up the first and drops the last.
    ``head``: the model must be able to predict tokens."""
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    if any(name.startswith(f"{prefix}layers.{len(shape.layers)}.") for name in tensors):
        raise PrunekitError(
            f"The weights in {folder} hold more than the {len(shape.layers)} layers that config.json names; "
            "the two don't belong together."
        )
    places = {HEAD}
    for name, expected in expected_tensors(family, shape, prefix):
        places.add(name)
        if name not in tensors:
            raise PrunekitError(
                f"The weights in {folder} lack {name}, which config.json asks for with {len(shape.layers)} layers; "
                "finish the download, or correct config.json."
            )
        _check_shape(folder, name, tensors[name], expected)
    if HEAD in tensors:
        _check_shape(folder, HEAD, tensors[HEAD], (shape.vocab_size, shape.hidden_size))
    elif head and not shape.tie_word_embeddings:
        raise PrunekitError(
            f"The weights in {folder} lack {HEAD}, and config.json says that the model's head is no copy of its "
            "embedding table; finish the download, or set tie_word_embeddings to true if it is one."
        )
    for name in sorted(set(tensors) - places):
        if not name.endswith(_HARMLESS):
            raise PrunekitError(_no_place(folder, name, prefix, family, shape))


def _no_place(folder: Path, name: str, prefix: str, family: Family, shape: ModelShape) -> str:
    start = f"{prefix}layers."
    if name.startswith(start):
        number, _, module = name.removeprefix(start).partition(".")
        for kind in shape.layers[int(number)].removed if number.isdecimal() and len(number) < 6 else ():
            if module.startswith(tuple(f"{part}." for part in family.sublayer_modules(kind))):
                return (
                    f"The weights in {folder} hold {name}, which config.json says layer {number} skips; the two "
                    "don't belong together."
                )
    if "lora_" in name:
        advice = "merge the adapter into its base model first (peft: merge_and_unload, save_pretrained)"
    elif name.endswith(".bias"):
        advice = "switch the bias on in config.json if the model was trained with it, or take the tensor out"
    else:
        advice = "give the checkpoint of the plain text decoder, or take the tensor out if the model does not need it"
    return (
        f"The weights in {folder} hold {name}, which a {family.name} model with this config.json has no place for, so "
        f"it would be lost; {advice}."
    )


def has_own_head(tensors: dict[str, StoredTensor]) -> bool:
    """Whether there is a head whose numbers are not those of the embedding table.

    Reads both tables, a few thousand rows at a time, where both are stored.
    """
    table = tensors.get(f"model.{_TABLE}", tensors.get(_TABLE))
    if table is None or HEAD not in tensors:
        return False
    import torch
    from safetensors import safe_open

    name = f"model.{_TABLE}" if f"model.{_TABLE}" in tensors else _TABLE
    with safe_open(tensors[HEAD].file, "pt") as left, safe_open(table.file, "pt") as right:
        head, embedding = left.get_slice(HEAD), right.get_slice(name)
        for start in range(0, table.shape[0], _ROWS):
            ours, theirs = head[start : start + _ROWS], embedding[start : start + _ROWS]
            common = torch.promote_types(ours.dtype, theirs.dtype)
            if not torch.equal(ours.to(common), theirs.to(common)):
                return True
    return False


def _check_shape(folder: Path, name: str, tensor: StoredTensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        # Loading would make up a tensor of the config's size, however large that is.
        raise PrunekitError(
            f"{name} in {folder} has the shape {list(tensor.shape)}, but config.json asks for {list(expected)}; the "
            "two don't belong together."
        )


def expected_tensors(
    family: Family, shape: ModelShape, prefix: str = "model."
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor but the head, with its shape: layer after layer, then the embedding table and the last norm."""
    hidden = (shape.hidden_size,)
    for index, layer in enumerate(shape.layers):
        for name, size in _layer_tensors(family, shape, layer):
            yield f"{prefix}layers.{index}.{name}", size
    yield f"{prefix}{_TABLE}", (shape.vocab_size, shape.hidden_size)
    yield f"{prefix}norm.weight", hidden


def _layer_tensors(family: Family, shape: ModelShape, layer: LayerShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    removed = {name for kind in layer.removed for name in family.sublayer_modules(kind)}
    for coupling in family.couplings:
        if coupling.kind in layer.removed:
            continue
        rows = _rows(coupling, layer, shape.head_dim)
        size = (rows, shape.hidden_size) if coupling.axis == 0 else (shape.hidden_size, rows)
        yield f"{coupling.module}.weight", size
        if getattr(shape, coupling.bias):
            yield f"{coupling.module}.bias", size[:1]
    if shape.qk_norm != "none" and "attention" not in layer.removed:
        wide = shape.qk_norm == "all"
        yield "self_attn.q_norm.weight", (layer.num_attention_heads * shape.head_dim if wide else shape.head_dim,)
        yield "self_attn.k_norm.weight", (layer.num_key_value_heads * shape.head_dim if wide else shape.head_dim,)
    norms = family.block_norms
    for norm in (norms.pre_attention, norms.post_attention, norms.pre_ffn, norms.post_ffn):
        if norm and norm not in removed:
            yield f"{norm}.weight", (shape.hidden_size,)


def _rows(coupling: Coupling, layer: LayerShape, head_dim: int) -> int:
    return sum(unit_count(layer, part) * unit_rows(part, head_dim) for part in coupling.parts)
