"""Qwen2 with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen2PreTrainedModel,
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
class PrunedQwen2Config(PerLayerConfigMixin, Qwen2Config):
    model_type = "pruned_qwen2"


class PrunedQwen2Model(PerLayerModelMixin, Qwen2Model):
    config_class = PrunedQwen2Config
    layer_class = Qwen2DecoderLayer


class PrunedQwen2ForCausalLM(PerLayerCausalLMMixin, Qwen2ForCausalLM):
    config_class = PrunedQwen2Config
    model_class = PrunedQwen2Model


class PrunedQwen2ForSequenceClassification(PerLayerSequenceClassificationMixin, Qwen2PreTrainedModel):
    config_class = PrunedQwen2Config
    model_class = PrunedQwen2Model


class PrunedQwen2ForTokenClassification(PerLayerTokenClassificationMixin, Qwen2PreTrainedModel):
    config_class = PrunedQwen2Config
    model_class = PrunedQwen2Model


class PrunedQwen2ForQuestionAnswering(PerLayerQuestionAnsweringMixin, Qwen2PreTrainedModel):
    config_class = PrunedQwen2Config
    model_class = PrunedQwen2Model


__all__ = [
    "PrunedQwen2Config",
    "PrunedQwen2ForCausalLM",
    "PrunedQwen2ForQuestionAnswering",
    "PrunedQwen2ForSequenceClassification",
    "PrunedQwen2ForTokenClassification",
    "PrunedQwen2Model",
]
