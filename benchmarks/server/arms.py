"""What is compared: a dense model, and three ways of making it smaller by the same number of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.models.shapes import Model, pruned_shape, rounded_shape
from prunekit.models.modeling import pruned_config
from prunekit.models.source import resolve
from prunekit.plan.shape import LayerShape, ModelShape

ARMS = ("dense", "homogeneous", "rounded", "irregular")
ROUNDED = 64
TRANSFORMERS = "@transformers"


@dataclass(frozen=True)
class Arm:
    """A model that vLLM is to run. ``name`` ends in @transformers where its Transformers backend is to run it.
    ``decode_bytes`` are the bf16 weights that one step reads, which bounds what pruning can bring."""

    name: str
    folder: Path
    decode_bytes: int

    @property
    def implementation(self) -> str:
        return "transformers" if self.name.endswith(TRANSFORMERS) else "auto"


def arm_shapes(dense: ModelShape, percent: int) -> dict[str, ModelShape]:
    """The shape of every arm, with ``percent`` % of the blocks' parameters gone.

    rounded: FFNs of the irregular plan at the nearest multiple of 64, heads as they are. homogeneous: all heads, and
    one FFN width, a multiple of 64, with as many parameters as it comes near to.
    """
    irregular = pruned_shape(dense, percent)
    rounded = rounded_shape(irregular, ROUNDED)
    first = dense.layers[0]
    channel = dense.layer_parameters(first) - dense.layer_parameters(
        LayerShape(first.num_attention_heads, first.num_key_value_heads, first.intermediate_size - 1)
    )
    gone = (dense.block_parameters - irregular.block_parameters) / dense.num_hidden_layers / channel
    width = max(ROUNDED, round((first.intermediate_size - gone) / ROUNDED) * ROUNDED)
    even = LayerShape(first.num_attention_heads, first.num_key_value_heads, width)
    homogeneous = dense.with_layers([even] * dense.num_hidden_layers)
    return dict(zip(ARMS, (dense, homogeneous, rounded, irregular), strict=True))


def write_arm(model: Model, name: str, shape: ModelShape, folder: Path) -> Arm:
    """``shape`` as a folder with config.json and no weights."""
    config = model.dense_config()
    family = model.family
    if shape.is_uniform:
        layer = shape.layers[0]
        config.num_attention_heads, config.num_key_value_heads = layer.num_attention_heads, layer.num_key_value_heads
        config.intermediate_size = layer.intermediate_size
        config.architectures = [family.causal_lm_class]
    else:
        config = pruned_config(family, config, shape.layers, range(shape.num_hidden_layers))
        config.architectures = [family.pruned_causal_lm_class]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return Arm(name, folder, shape.decode_bytes(2))


def stored_arm(name: str, folder: Path) -> Arm:
    """A checkpoint that is there."""
    return Arm(name, folder, resolve(str(folder)).shape.decode_bytes(2))
