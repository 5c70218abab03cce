"""Phi-3 with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3ForCausalLM, Phi3Model, Phi3PreTrainedModel

from .per_layer import (
    PerLayerCausalLMMixin,
    PerLayerConfigMixin,
    PerLayerModelMixin,
    PerLayerQuestionAnsweringMixin,
    PerLayerSequenceClassificationMixin,
    PerLayerTokenClassificationMixin,
    global_view,
)


@strict
class PrunedPhi3Config(PerLayerConfigMixin, Phi3Config):
    model_type = "pruned_phi3"

    def validate_rope(self) -> None:
        # The stock check derives the rotary width from a global head count.
        Phi3Config.validate_rope(global_view(self))


class PrunedPhi3Model(PerLayerModelMixin, Phi3Model):
    config_class = PrunedPhi3Config
    layer_class = Phi3DecoderLayer


class PrunedPhi3ForCausalLM(PerLayerCausalLMMixin, Phi3ForCausalLM):
    config_class = PrunedPhi3Config
    model_class = PrunedPhi3Model


class PrunedPhi3ForSequenceClassification(PerLayerSequenceClassificationMixin, Phi3PreTrainedModel):
    config_class = PrunedPhi3Config
    model_class = PrunedPhi3Model


class PrunedPhi3ForTokenClassification(PerLayerTokenClassificationMixin, Phi3PreTrainedModel):
    config_class = PrunedPhi3Config
    model_class = PrunedPhi3Model


class PrunedPhi3ForQuestionAnswering(PerLayerQuestionAnsweringMixin, Phi3PreTrainedModel):
    config_class = PrunedPhi3Config
    model_class = PrunedPhi3Model


__all__ = [
    "PrunedPhi3Config",
    "PrunedPhi3ForCausalLM",
    "PrunedPhi3ForQuestionAnswering",
    "PrunedPhi3ForSequenceClassification",
    "PrunedPhi3ForTokenClassification",
    "PrunedPhi3Model",
]
