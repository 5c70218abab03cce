"""Mistral with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import (
    MistralDecoderLayer,
    MistralForCausalLM,
    MistralModel,
    MistralPreTrainedModel,
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
class PrunedMistralConfig(PerLayerConfigMixin, MistralConfig):
    model_type = "pruned_mistral"


class PrunedMistralModel(PerLayerModelMixin, MistralModel):
    config_class = PrunedMistralConfig
    layer_class = MistralDecoderLayer


class PrunedMistralForCausalLM(PerLayerCausalLMMixin, MistralForCausalLM):
    config_class = PrunedMistralConfig
    model_class = PrunedMistralModel


class PrunedMistralForSequenceClassification(PerLayerSequenceClassificationMixin, MistralPreTrainedModel):
    config_class = PrunedMistralConfig
    model_class = PrunedMistralModel


class PrunedMistralForTokenClassification(PerLayerTokenClassificationMixin, MistralPreTrainedModel):
    config_class = PrunedMistralConfig
    model_class = PrunedMistralModel


class PrunedMistralForQuestionAnswering(PerLayerQuestionAnsweringMixin, MistralPreTrainedModel):
    config_class = PrunedMistralConfig
    model_class = PrunedMistralModel


__all__ = [
    "PrunedMistralConfig",
    "PrunedMistralForCausalLM",
    "PrunedMistralForQuestionAnswering",
    "PrunedMistralForSequenceClassification",
    "PrunedMistralForTokenClassification",
    "PrunedMistralModel",
]
