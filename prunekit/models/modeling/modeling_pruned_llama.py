"""Llama with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
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
class PrunedLlamaConfig(PerLayerConfigMixin, LlamaConfig):
    model_type = "pruned_llama"


class PrunedLlamaModel(PerLayerModelMixin, LlamaModel):
    config_class = PrunedLlamaConfig
    layer_class = LlamaDecoderLayer


class PrunedLlamaForCausalLM(PerLayerCausalLMMixin, LlamaForCausalLM):
    config_class = PrunedLlamaConfig
    model_class = PrunedLlamaModel


class PrunedLlamaForSequenceClassification(PerLayerSequenceClassificationMixin, LlamaPreTrainedModel):
    config_class = PrunedLlamaConfig
    model_class = PrunedLlamaModel


class PrunedLlamaForTokenClassification(PerLayerTokenClassificationMixin, LlamaPreTrainedModel):
    config_class = PrunedLlamaConfig
    model_class = PrunedLlamaModel


class PrunedLlamaForQuestionAnswering(PerLayerQuestionAnsweringMixin, LlamaPreTrainedModel):
    config_class = PrunedLlamaConfig
    model_class = PrunedLlamaModel


__all__ = [
    "PrunedLlamaConfig",
    "PrunedLlamaForCausalLM",
    "PrunedLlamaForQuestionAnswering",
    "PrunedLlamaForSequenceClassification",
    "PrunedLlamaForTokenClassification",
    "PrunedLlamaModel",
]
