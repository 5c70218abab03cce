"""Mistral with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM, MistralModel

from .per_layer import PerLayerCausalLMMixin, PerLayerConfigMixin, PerLayerModelMixin


@strict
class PrunedMistralConfig(PerLayerConfigMixin, MistralConfig):
    model_type = "pruned_mistral"


class PrunedMistralModel(PerLayerModelMixin, MistralModel):
    config_class = PrunedMistralConfig
    layer_class = MistralDecoderLayer


class PrunedMistralForCausalLM(PerLayerCausalLMMixin, MistralForCausalLM):
    config_class = PrunedMistralConfig
    model_class = PrunedMistralModel


__all__ = ["PrunedMistralConfig", "PrunedMistralForCausalLM", "PrunedMistralModel"]
