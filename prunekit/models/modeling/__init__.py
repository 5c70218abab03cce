"""Pruned checkpoints as transformers models: configs, classes, and the code a checkpoint carries."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES, Family
from prunekit.plan.shape import LayerShape

_registered = False


def pruned_class(family: Family, suffix: str) -> Any:
    """``Pruned<Prefix><suffix>`` of a family; ``suffix`` is Config, Model, ForCausalLM or another
    end of a name that ``per_layer.AUTO_CLASSES`` lists."""
    module = importlib.import_module(f"{__name__}.{family.pruned_module}")
    return getattr(module, f"Pruned{family.class_prefix}{suffix}")


def register_pruned() -> None:
    """Let transformers' auto classes load per-layer checkpoints (``model_type`` pruned_*) without remote code.
    Cheap when repeated."""
    global _registered
    if _registered:
        return
    with _uncollected():
        import transformers

        from prunekit.models.modeling import per_layer

        # A checkpoint's own copy of the module must do without prunekit's class.
        per_layer.PrunekitError = PrunekitError  # type: ignore[misc, assignment]
        for family in FAMILIES.values():
            config = pruned_class(family, "Config")
            for auto, suffix in per_layer.AUTO_CLASSES.items():
                if auto == "AutoConfig":
                    transformers.AutoConfig.register(family.pruned_model_type, config, exist_ok=True)
                else:
                    getattr(transformers, auto).register(config, pruned_class(family, suffix), exist_ok=True)
    _registered = True


@contextmanager
def _uncollected() -> Iterator[None]:
    """Importing makes a million objects that stay, and as they come Python's collector would look through them again
    and again: a sixth of the time of `import prunekit`."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _base_fields(family: Family, source_config: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Fields of ``source_config`` that a config of its ``kept`` layers shares, with global (dense) widths."""
    total = source_config.num_hidden_layers
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= total:
        raise PrunekitError(f"The kept layers must be rising indices below {total}, got {list(kept)}.")
    if source_config.model_type not in (family.model_type, family.pruned_model_type):
        raise PrunekitError(f"A {family.name} config was expected, got one of type {source_config.model_type!r}.")
    head_dim = family.shape(source_config).head_dim
    fields = source_config.to_dict()
    for name in (
        "_name_or_path",
        "architectures",
        "auto_map",
        "model_type",
        "per_layer_config",
        "prunekit",
        "quantization_config",
        "transformers_version",
    ):
        fields.pop(name, None)
    # layer_types may be set on a config that has no such field; transformers then still checks its length.
    for name in {"layer_types", *family.per_layer_fields}:
        values = fields.get(name)
        if values is not None:
            fields[name] = [values[index] for index in kept]
    return fields | {"num_hidden_layers": len(kept), "head_dim": head_dim}


def pruned_config(
    family: Family, source_config: Any, layer_shapes: Sequence[LayerShape], kept_layer_indices: Sequence[int]
) -> Any:
    """A ``Pruned<Prefix>Config`` whose layer i has ``layer_shapes[i]`` and comes from ``kept_layer_indices[i]``.

    ``source_config`` is a dense or already pruned config of ``family``; its global widths stay the global widths.
    Raises PrunekitError where shapes and indices don't match each other or the source.
    """
    if len(layer_shapes) != len(kept_layer_indices):
        raise PrunekitError(f"{len(layer_shapes)} layer shapes were given for {len(kept_layer_indices)} kept layers.")
    fields = _base_fields(family, source_config, kept_layer_indices)
    return pruned_class(family, "Config")(
        **fields,
        architectures=[family.pruned_causal_lm_class],
        per_layer_config={index: _overrides(shape) for index, shape in enumerate(layer_shapes)},
    )


def _overrides(shape: LayerShape) -> dict[str, Any]:
    """A layer's entry in ``per_layer_config``. What it skips has the least widths that a layer can be built with: other
    than the global ones, they make stock classes refuse the config rather than fill the gap with random weights."""
    own: dict[str, Any] = {name: width or 1 for name, width in asdict(shape).items()}
    skip = skipped_parts(shape)
    return own | ({"skip": skip} if skip else {})


def skipped_parts(shape: LayerShape) -> list[str]:
    """What a layer lacks, in transformers' words."""
    return [{"attention": "attention", "ffn": "mlp"}[kind] for kind in shape.removed]


def stock_config(family: Family, source_config: Any, layer_shape: LayerShape, kept_layer_indices: Sequence[int]) -> Any:
    """A config of the stock class in which every kept layer has ``layer_shape``: the uniform twin.

    Raises PrunekitError where the stock config refuses such widths.
    """
    from huggingface_hub.errors import StrictDataclassError

    fields = _base_fields(family, source_config, kept_layer_indices) | asdict(layer_shape)
    try:
        return family.stock(family.config_class)(**fields, architectures=[family.causal_lm_class])
    except (StrictDataclassError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise PrunekitError(
            f"A stock {family.name} config can't have {layer_shape.num_attention_heads} query heads, "
            f"{layer_shape.num_key_value_heads} KV heads and {layer_shape.intermediate_size} FFN channels in every "
            f"layer: {reason}. Use the per-layer layout, or keep a number of heads that it accepts."
        ) from None
