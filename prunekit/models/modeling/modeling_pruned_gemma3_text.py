"""Gemma 3 (text) with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3DecoderLayer,
    Gemma3ForCausalLM,
    Gemma3PreTrainedModel,
    Gemma3TextModel,
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
class PrunedGemma3Config(PerLayerConfigMixin, Gemma3TextConfig):
    model_type = "pruned_gemma3_text"


class PrunedGemma3Model(PerLayerModelMixin, Gemma3TextModel):
    config_class = PrunedGemma3Config
    layer_class = Gemma3DecoderLayer


class PrunedGemma3ForCausalLM(PerLayerCausalLMMixin, Gemma3ForCausalLM):
    config_class = PrunedGemma3Config
    model_class = PrunedGemma3Model


class PrunedGemma3ForSequenceClassification(PerLayerSequenceClassificationMixin, Gemma3PreTrainedModel):
    config_class = PrunedGemma3Config
    model_class = PrunedGemma3Model


class PrunedGemma3ForTokenClassification(PerLayerTokenClassificationMixin, Gemma3PreTrainedModel):
    config_class = PrunedGemma3Config
    model_class = PrunedGemma3Model


class PrunedGemma3ForQuestionAnswering(PerLayerQuestionAnsweringMixin, Gemma3PreTrainedModel):
    config_class = PrunedGemma3Config
    model_class = PrunedGemma3Model


__all__ = [
    "PrunedGemma3Config",
    "PrunedGemma3ForCausalLM",
    "PrunedGemma3ForQuestionAnswering",
    "PrunedGemma3ForSequenceClassification",
    "PrunedGemma3ForTokenClassification",
    "PrunedGemma3Model",
]
