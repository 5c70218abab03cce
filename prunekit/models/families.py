"""The model families prunekit can prune, as data: where projections, norms and biases live, and what is coupled."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

from prunekit.errors import PrunekitError
from prunekit.plan.shape import Kind, LayerShape, ModelShape, QKNorm

Part = Literal["query", "kv", "ffn"]


def unit_count(layer: LayerShape, part: Part) -> int:
    """Units of that kind in a layer."""
    return {
        "query": layer.num_attention_heads,
        "kv": layer.num_key_value_heads,
        "ffn": layer.intermediate_size,
    }[part]


def unit_rows(part: Part, head_dim: int) -> int:
    """Rows (or columns) of a weight that one unit takes."""
    return 1 if part == "ffn" else head_dim


@dataclass(frozen=True)
class Coupling:
    """One module of a decoder layer whose weight shrinks when units go.

    ``axis`` is the axis of ``weight`` along which the units lie (a bias follows axis 0). ``parts`` names the runs of
    units along it, in order: a fused qkv_proj has a run of query heads and two of KV heads.
    """

    module: str
    axis: int
    parts: tuple[Part, ...]

    @property
    def kind(self) -> Kind:
        """The sub-layer it belongs to."""
        return "ffn" if "ffn" in self.parts else "attention"

    @property
    def bias(self) -> str:
        """The field of ModelShape and Family that says whether this module has a bias."""
        return "mlp_bias" if "ffn" in self.parts else "o_bias" if self.axis == 1 else "qkv_bias"


BIASES = ("qkv_bias", "o_bias", "mlp_bias")

ATTENTION = (
    Coupling("self_attn.q_proj", 0, ("query",)),
    Coupling("self_attn.k_proj", 0, ("kv",)),
    Coupling("self_attn.v_proj", 0, ("kv",)),
    Coupling("self_attn.o_proj", 1, ("query",)),
)
FUSED_ATTENTION = (
    Coupling("self_attn.qkv_proj", 0, ("query", "kv", "kv")),
    Coupling("self_attn.o_proj", 1, ("query",)),
)
FFN = (
    Coupling("mlp.gate_proj", 0, ("ffn",)),
    Coupling("mlp.up_proj", 0, ("ffn",)),
    Coupling("mlp.down_proj", 1, ("ffn",)),
)
FUSED_FFN = (
    Coupling("mlp.gate_up_proj", 0, ("ffn", "ffn")),
    Coupling("mlp.down_proj", 1, ("ffn",)),
)


@dataclass(frozen=True)
class Norm:
    """A q/k norm taken over all heads at once: its mean runs over a number of channels that pruning changes.

    Slicing alone would change the statistic, so ``projection`` (weight and bias) is scaled by sqrt(new/old) and the
    norm's weight by its inverse, which gives back exactly what the full-width norm makes of zeroed heads.
    """

    module: str
    projection: str
    part: Part


@dataclass(frozen=True)
class BlockNorms:
    """Names of a decoder layer's norms over the hidden state, by where they stand; None where there is none.

    x += post_attention(attention(pre_attention(x))); x += post_ffn(ffn(pre_ffn(x)))
    """

    pre_attention: str | None = "input_layernorm"
    post_attention: str | None = None
    pre_ffn: str | None = "post_attention_layernorm"
    post_ffn: str | None = None

    def __len__(self) -> int:
        return sum(name is not None for name in astuple(self))


PRE_NORMS = BlockNorms()
SANDWICH_NORMS = BlockNorms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)
POST_NORMS = BlockNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")


@dataclass(frozen=True)
class Family:
    """One family of decoder models.

    ``qkv_bias``, ``o_bias`` and ``mlp_bias`` are either fixed or the name of the config field that says so.
    A norm multiplies by its weight plus ``norm_offset``. Where ``scaled_embedding``, embeddings are multiplied by
    sqrt(hidden size).
    ``per_layer_fields`` are config lists with one entry a layer, which must be cut when layers are dropped.
    ``attn_implementation`` is set where transformers' default computes something else in a supported version.
    """

    name: str
    model_type: str
    module: str
    class_prefix: str
    model_class: str
    config_class: str
    couplings: tuple[Coupling, ...]
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: QKNorm = "none"
    wide_norms: tuple[Norm, ...] = ()
    block_norms: BlockNorms = PRE_NORMS
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    per_layer_fields: tuple[str, ...] = ()
    attn_implementation: str | None = None

    def unit_tensors(self) -> Iterator[tuple[str, int, tuple[Part, ...]]]:
        """Every tensor of a layer that holds units: its name, the axis they lie along, and their runs on it.

        Biases and norms that a model of the family may lack are named too.
        """
        for coupling in self.couplings:
            yield f"{coupling.module}.weight", coupling.axis, coupling.parts
            if coupling.axis == 0:
                yield f"{coupling.module}.bias", 0, coupling.parts
        for norm in self.wide_norms:
            yield f"{norm.module}.weight", 0, (norm.part,)

    def sublayer_modules(self, kind: Kind) -> tuple[str, ...]:
        """The modules of a layer that are there for its attention, or its FFN, alone: projections and norms."""
        norms = self.block_norms
        own = {
            "attention": ("self_attn", norms.pre_attention, norms.post_attention),
            "ffn": ("mlp", norms.pre_ffn, norms.post_ffn),
        }
        return tuple(name for name in own[kind] if name)

    def output_projections(self) -> tuple[Coupling, ...]:
        """The two projections whose *input* channels are the units: o_proj (query heads) and down_proj (FFN)."""
        return tuple(coupling for coupling in self.couplings if coupling.axis == 1)

    @property
    def pruned_model_type(self) -> str:
        """``model_type`` of a checkpoint whose layers differ."""
        return f"pruned_{self.model_type}"

    @property
    def causal_lm_class(self) -> str:
        return f"{self.class_prefix}ForCausalLM"

    @property
    def pruned_module(self) -> str:
        """Name of the modelling module that a per-layer checkpoint carries."""
        return f"modeling_pruned_{self.model_type}"

    @property
    def pruned_causal_lm_class(self) -> str:
        return f"Pruned{self.class_prefix}ForCausalLM"

    def stock(self, name: str) -> Any:
        """A class of the family's stock transformers modelling, e.g. ``stock(family.causal_lm_class)``."""
        for part in ("modeling", "configuration"):
            module = importlib.import_module(f"transformers.models.{self.module}.{part}_{self.module}")
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"transformers.models.{self.module} has no {name}")

    def flag(self, value: bool | str, config: Any) -> bool:
        return bool(getattr(config, value, False)) if isinstance(value, str) else value

    def shape(self, config: Any) -> ModelShape:
        """The ModelShape of a transformers config of this family, dense or per-layer."""
        heterogeneous = getattr(config, "is_heterogeneous", False)
        layers = []
        for index in range(config.num_hidden_layers):
            own = config.per_layer_config[index] if heterogeneous else config
            heads = own.num_attention_heads
            layer = LayerShape(heads, getattr(own, "num_key_value_heads", None) or heads, own.intermediate_size)
            # Only layers of a per-layer config can skip anything.
            skipped = own.skip if heterogeneous else ()
            if "attention" in skipped:
                layer = replace(layer, num_attention_heads=0, num_key_value_heads=0)
            layers.append(replace(layer, intermediate_size=0) if "mlp" in skipped else layer)
        head_dim = getattr(config, "head_dim", None)
        if not head_dim:
            head_dim = config.hidden_size // config.num_attention_heads
        return ModelShape(
            hidden_size=config.hidden_size,
            head_dim=head_dim,
            vocab_size=config.vocab_size,
            tie_word_embeddings=bool(config.tie_word_embeddings),
            layers=tuple(layers),
            qkv_bias=self.flag(self.qkv_bias, config),
            o_bias=self.flag(self.o_bias, config),
            mlp_bias=self.flag(self.mlp_bias, config),
            qk_norm=self.qk_norm,
            norms_per_layer=len(self.block_norms),
        )


def _family(name: str, model_type: str, prefix: str, **fields: Any) -> Family:
    defaults: dict[str, Any] = {
        "module": model_type,
        "model_class": f"{prefix}Model",
        "config_class": f"{prefix}Config",
        "couplings": ATTENTION + FFN,
    }
    return Family(name=name, model_type=model_type, class_prefix=prefix, **{**defaults, **fields})


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _family("Llama", "llama", "Llama", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
        _family("Mistral", "mistral", "Mistral"),
        _family("Qwen2", "qwen2", "Qwen2", qkv_bias=True, per_layer_fields=("layer_types",)),
        _family(
            "Qwen3",
            "qwen3",
            "Qwen3",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm="head",
            per_layer_fields=("layer_types",),
        ),
        _family(
            "Gemma 2",
            "gemma2",
            "Gemma2",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            block_norms=SANDWICH_NORMS,
            norm_offset=1.0,
            scaled_embedding=True,
            per_layer_fields=("layer_types",),
            # sdpa, which transformers 5.16 picks, leaves out the softcapping of attention logits.
            attn_implementation="eager",
        ),
        _family(
            "Gemma 3",
            "gemma3_text",
            "Gemma3",
            module="gemma3",
            model_class="Gemma3TextModel",
            config_class="Gemma3TextConfig",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm="head",
            block_norms=SANDWICH_NORMS,
            norm_offset=1.0,
            scaled_embedding=True,
            per_layer_fields=("layer_types",),
        ),
        _family("Phi-3", "phi3", "Phi3", couplings=FUSED_ATTENTION + FUSED_FFN),
        _family(
            "OLMo-2",
            "olmo2",
            "Olmo2",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm="all",
            block_norms=POST_NORMS,
            wide_norms=(
                Norm("self_attn.q_norm", "self_attn.q_proj", "query"),
                Norm("self_attn.k_norm", "self_attn.k_proj", "kv"),
            ),
        ),
        _family(
            "SmolLM3",
            "smollm3",
            "SmolLM3",
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
            per_layer_fields=("layer_types", "no_rope_layers"),
        ),
    )
}


def supported() -> str:
    """The families that work, for messages."""
    return ", ".join(family.name for family in FAMILIES.values())


def family_of(model_type: str) -> Family:
    """The family of a config's ``model_type``, dense or pruned. Raises PrunekitError that names what works."""
    for family in FAMILIES.values():
        if model_type in (family.model_type, family.pruned_model_type):
            return family
    reason = _REFUSED.get(model_type, "its layers are not described to prunekit")
    raise PrunekitError(f"A model of type {model_type!r} can't be pruned: {reason}. What works: {supported()}.")


_MOE = "it is a mixture of experts, whose layers need expert pruning"
_ENCODER = "it is not a decoder-only language model"
_MULTIMODAL = "it holds more than a text decoder; extract the text model first"
_MLA = "it uses multi-head latent attention"
_REFUSED = {
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "dbrx", "jamba", "llama4", "granitemoe"),
        _MOE,
    ),
    **dict.fromkeys(("bert", "roberta", "distilbert", "t5", "bart", "modernbert", "vit", "clip", "whisper"), _ENCODER),
    **dict.fromkeys(
        ("gemma3", "mllama", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm"), _MULTIMODAL
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2", "minicpm3"), _MLA),
    **dict.fromkeys(("mamba", "mamba2", "rwkv", "falcon_mamba"), "it has no attention layers"),
}
