"""Decoder layers of different widths, on top of a stock transformers model.

This file and its ``modeling_pruned_*`` neighbour are copied into every per-layer checkpoint, so they import only
torch, transformers, huggingface_hub and each other. Forwards are inherited: vLLM reads the source of the stock ones.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.utils import cached_file

PLAN = "plan.json"


def global_view(config: Any) -> Any:
    """A shallow copy of ``config`` without its per-layer overrides: every layer as wide as the dense one."""
    shell = copy.copy(config)
    shell.per_layer_config = None
    return shell


class LayerConfig:
    """What one layer reads as its config: its own widths first, everything else live from the model's config.

    A copy would go stale: ``model.set_attn_implementation()`` changes the model's config, and each attention asks its
    own. The model's config alone won't do either, since it refuses to name a width that differs between layers.
    """

    def __init__(self, config: Any, index: int):
        layer = config.per_layer_config[index]
        own = {name: getattr(layer, name) for name in config.per_layer_attributes or ()}
        self.__dict__.update(_config=config, _own=own)

    def __getattr__(self, name: str) -> Any:
        # Reached through __dict__: copy and pickle ask for attributes before there are any.
        fields = self.__dict__
        if "_config" not in fields:
            raise AttributeError(name)
        own = fields["_own"]
        return own[name] if name in own else getattr(fields["_config"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            self._own[name] = value
        else:
            setattr(self._config, name, value)


class PrunekitError(Exception):
    """Something the user can put right. The message is a whole sentence that says what to do."""


# The class of a family's module that each auto class is to load, by the end of its name.
AUTO_CLASSES = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}


def _carry_plan(origin: Any, folder: Path) -> None:
    """Copy the plan that lies beside the model in ``origin``, a folder or a hub id, unless ``folder`` has one. Never
    asks the network."""
    target = folder / PLAN
    if not origin or target.exists():
        return
    found = cached_file(
        str(origin),
        PLAN,
        local_files_only=True,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is not None and Path(found).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)


def _adapt_as_stock(model_type: str) -> None:
    """Where PEFT is imported, let it adapt the modules of a pruned model that it adapts of the stock one."""
    constants = sys.modules.get("peft.utils.constants")
    stock = model_type.removeprefix("pruned_")
    for name, table in vars(constants).items() if constants else ():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and stock in table:
            table.setdefault(model_type, table[stock])


class PerLayerConfigMixin:
    """Checks each layer's widths instead of the one global width that stock configs look at.

    Whoever saves such a config, alone or with a model, saves the code that it names beside it.
    """

    # What makes transformers copy the module of the class, and what that imports, into the folder before an upload.
    _auto_class: ClassVar[str | None] = "AutoConfig"

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with an ``auto_map`` that names the code in that very folder."""
        own = type(self)
        prefix = f"{own.__module__.rsplit('.', 1)[-1]}.{own.__name__.removesuffix('Config')}"
        self.auto_map = {auto: prefix + suffix for auto, suffix in AUTO_CLASSES.items()}
        # Before what may upload the folder.
        _carry_plan(getattr(self, "_name_or_path", None), Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    def to_dict(self) -> dict[str, Any]:
        """As in transformers. PEFT asks for it before it looks up what to adapt by the type of the model."""
        _adapt_as_stock(type(self).model_type)  # type: ignore[attr-defined]
        return cast("dict[str, Any]", super().to_dict())  # type: ignore[misc]

    def validate_architecture(self) -> None:
        """Raises ValueError where a layer's heads can't be shared equally, head_dim is missing or a layer is empty."""
        config: Any = self
        if not config.is_heterogeneous:
            return
        if not getattr(config, "head_dim", None):
            raise ValueError(
                "A config with per-layer widths must state head_dim: it can't be derived from head counts."
            )
        for index, layer in enumerate(config.per_layer_config):
            unknown = set(layer.skip) - set(PARTS)
            if unknown or len(layer.skip) == len(PARTS):
                raise ValueError(
                    f"Layer {index} skips {layer.skip}, but it can skip attention or mlp alone; for neither, drop the "
                    "whole layer."
                )
            if layer.num_attention_heads % layer.num_key_value_heads:
                raise ValueError(
                    f"Layer {index} has {layer.num_attention_heads} query heads, which {layer.num_key_value_heads} KV "
                    "heads can't share equally."
                )


PARTS = ("attention", "mlp")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


class NoAttention(nn.Module):
    """In the place of a removed attention: adds nothing.

    Its cache entry holds one number a token, for transformers reads the length of what is cached off single layers.
    """

    def __init__(self, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if past_key_values is not None:
            layers = past_key_values.layers
            keys = layers[self.layer_idx].keys if self.layer_idx < len(layers) else None
            # Where the cache was allocated beforehand it has its own sizes.
            heads, width = (keys.shape[1], keys.shape[3]) if keys is not None and keys.dim() == 4 else (1, 1)
            batch, length, _ = hidden_states.shape
            entry = hidden_states.new_zeros(batch, heads, length, width)
            past_key_values.update(entry, entry, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoFFN(nn.Module):
    """In the place of a removed FFN: adds nothing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def remove_parts(layer: nn.Module, parts: Iterable[str], layer_idx: int) -> None:
    """Take attention or FFN out of a stock decoder layer, with their norms, so that its forward runs without them."""
    # They run in this order, and every family has as many around its attention as around its FFN.
    norms = [name for name in _NORMS if hasattr(layer, name)]
    for part in parts:
        if part == "attention":
            layer.self_attn, own = NoAttention(layer_idx), norms[: len(norms) // 2]
        else:
            layer.mlp, own = NoFFN(), norms[len(norms) // 2 :]
        for name in own:
            setattr(layer, name, nn.Identity())


class PerLayerModelMixin:
    """``__init__`` of a stock decoder, with every layer built at its own widths. ``layer_class`` is the stock layer."""

    layer_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        skips = [getattr(config.per_layer_config[index], "skip", ()) for index in range(config.num_hidden_layers)]
        # Without prunekit, vLLM gives every layer an attention and a cache before it looks at what the layers are.
        if any(skips) and getattr(config, "_attn_implementation", None) == "vllm":
            raise ValueError(
                "vLLM takes no layers without attention or FFN by itself; install prunekit beside it, run this model "
                "in transformers, or prune the original again with `prunekit prune --plan plan.json --layout uniform`, "
                "which puts zeros there."
            )
        shell = global_view(config)
        # No layer is built from the shell, so full-width weights are never allocated.
        shell.num_hidden_layers = 0
        super().__init__(shell)  # type: ignore[call-arg]
        # PreTrainedModel.__init__ settled these on the shell.
        for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
            if name in shell.__dict__:
                setattr(config, name, shell.__dict__[name])
        self.config = config
        self.layers = nn.ModuleList(
            self.layer_class(LayerConfig(config, index), index) for index in range(config.num_hidden_layers)
        )
        for index, (layer, skip) in enumerate(zip(self.layers, skips, strict=True)):
            remove_parts(layer, skip, index)
        self.post_init()  # type: ignore[attr-defined]


class PerLayerCausalLMMixin:
    """``__init__`` of a stock causal LM around a per-layer decoder. ``model_class`` is that decoder."""

    model_class: ClassVar[type[PreTrainedModel]]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # `transformers serve` looks for the class that config.json names in the package, of which importing a processor
        # makes a second module.
        server = sys.modules.get("transformers.cli.serving.model_manager")
        for module in (sys.modules["transformers"], getattr(server, "transformers", None)):
            if module is not None:
                setattr(module, cls.__name__, cls)

    def __init__(self, config: Any):
        # The stock __init__ would build the stock decoder.
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises PrunekitError where its cache, which has one head count, can't hold this model."""
        config: Any = self.config  # type: ignore[attr-defined]
        differing = {"num_attention_heads", "num_key_value_heads"} & set(config.per_layer_attributes or ())
        if differing or any(getattr(layer, "skip", ()) for layer in config.per_layer_config or ()):
            raise PrunekitError(
                "Continuous batching (generate_batch, `transformers serve --continuous-batching`) needs equal heads in "
                "all layers, and the layers of this model differ. Use generate(), or prune the original model again "
                "with `prunekit prune --plan plan.json --layout uniform`."
            )
        return super().init_continuous_batching(*args, **kwargs)  # type: ignore[misc]


class PerLayerSequenceClassificationMixin(GenericForSequenceClassification):
    """A score head on the last token that is no padding (reward models, classifiers) around a per-layer decoder."""

    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: Any):
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]
        self.num_labels = config.num_labels
        self.model = self.model_class(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()  # type: ignore[attr-defined]


class PerLayerTokenClassificationMixin(GenericForTokenClassification):
    """A score head on every token around a per-layer decoder."""

    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: Any):
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]
        self.num_labels = config.num_labels
        self.model = self.model_class(config)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        bias = getattr(config, "token_classification_bias", True)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=bias)
        self.post_init()  # type: ignore[attr-defined]


class PerLayerQuestionAnsweringMixin(GenericForQuestionAnswering):
    """Scores of where an answer starts and ends, around a per-layer decoder."""

    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: Any):
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]
        self.model = self.model_class(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[attr-defined]
