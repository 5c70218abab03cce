"""Gemma 2 with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import (
    Gemma2DecoderLayer,
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma2PreTrainedModel,
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
class PrunedGemma2Config(PerLayerConfigMixin, Gemma2Config):
    model_type = "pruned_gemma2"


class PrunedGemma2Model(PerLayerModelMixin, Gemma2Model):
    config_class = PrunedGemma2Config
    layer_class = Gemma2DecoderLayer


class PrunedGemma2ForCausalLM(PerLayerCausalLMMixin, Gemma2ForCausalLM):
    config_class = PrunedGemma2Config
    model_class = PrunedGemma2Model


class PrunedGemma2ForSequenceClassification(PerLayerSequenceClassificationMixin, Gemma2PreTrainedModel):
    config_class = PrunedGemma2Config
    model_class = PrunedGemma2Model


class PrunedGemma2ForTokenClassification(PerLayerTokenClassificationMixin, Gemma2PreTrainedModel):
    config_class = PrunedGemma2Config
    model_class = PrunedGemma2Model


class PrunedGemma2ForQuestionAnswering(PerLayerQuestionAnsweringMixin, Gemma2PreTrainedModel):
    config_class = PrunedGemma2Config
    model_class = PrunedGemma2Model


__all__ = [
    "PrunedGemma2Config",
    "PrunedGemma2ForCausalLM",
    "PrunedGemma2ForQuestionAnswering",
    "PrunedGemma2ForSequenceClassification",
    "PrunedGemma2ForTokenClassification",
    "PrunedGemma2Model",
]
