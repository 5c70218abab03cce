"""Qwen3 with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3PreTrainedModel,
)

from .per_layer import (
    PerLayerCausalLMMixin,
    PerLayerConfigMixin,
    PerLayerModelMixin,
    PerLayerQuestionAnsweringMixin,
    PerLayerSequenceClassificationMixin,
    PerLayerTokenClassificationMixin,
)


@strict
class PrunedQwen3Config(PerLayerConfigMixin, Qwen3Config):
    model_type = "pruned_qwen3"


class PrunedQwen3Model(PerLayerModelMixin, Qwen3Model):
    config_class = PrunedQwen3Config
    layer_class = Qwen3DecoderLayer


class PrunedQwen3ForCausalLM(PerLayerCausalLMMixin, Qwen3ForCausalLM):
    config_class = PrunedQwen3Config
    model_class = PrunedQwen3Model


class PrunedQwen3ForSequenceClassification(PerLayerSequenceClassificationMixin, Qwen3PreTrainedModel):
    config_class = PrunedQwen3Config
    model_class = PrunedQwen3Model


class PrunedQwen3ForTokenClassification(PerLayerTokenClassificationMixin, Qwen3PreTrainedModel):
    config_class = PrunedQwen3Config
    model_class = PrunedQwen3Model


class PrunedQwen3ForQuestionAnswering(PerLayerQuestionAnsweringMixin, Qwen3PreTrainedModel):
    config_class = PrunedQwen3Config
    model_class = PrunedQwen3Model


__all__ = [
    "PrunedQwen3Config",
    "PrunedQwen3ForCausalLM",
    "PrunedQwen3ForQuestionAnswering",
    "PrunedQwen3ForSequenceClassification",
    "PrunedQwen3ForTokenClassification",
    "PrunedQwen3Model",
]
