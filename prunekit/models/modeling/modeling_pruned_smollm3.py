"""SmolLM3 with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config
from transformers.models.smollm3.modeling_smollm3 import (
    SmolLM3DecoderLayer,
    SmolLM3ForCausalLM,
    SmolLM3Model,
    SmolLM3PreTrainedModel,
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
class PrunedSmolLM3Config(PerLayerConfigMixin, SmolLM3Config):
    model_type = "pruned_smollm3"


class PrunedSmolLM3Model(PerLayerModelMixin, SmolLM3Model):
    config_class = PrunedSmolLM3Config
    layer_class = SmolLM3DecoderLayer


class PrunedSmolLM3ForCausalLM(PerLayerCausalLMMixin, SmolLM3ForCausalLM):
    config_class = PrunedSmolLM3Config
    model_class = PrunedSmolLM3Model


class PrunedSmolLM3ForSequenceClassification(PerLayerSequenceClassificationMixin, SmolLM3PreTrainedModel):
    config_class = PrunedSmolLM3Config
    model_class = PrunedSmolLM3Model


class PrunedSmolLM3ForTokenClassification(PerLayerTokenClassificationMixin, SmolLM3PreTrainedModel):
    config_class = PrunedSmolLM3Config
    model_class = PrunedSmolLM3Model


class PrunedSmolLM3ForQuestionAnswering(PerLayerQuestionAnsweringMixin, SmolLM3PreTrainedModel):
    config_class = PrunedSmolLM3Config
    model_class = PrunedSmolLM3Model


__all__ = [
    "PrunedSmolLM3Config",
    "PrunedSmolLM3ForCausalLM",
    "PrunedSmolLM3ForQuestionAnswering",
    "PrunedSmolLM3ForSequenceClassification",
    "PrunedSmolLM3ForTokenClassification",
    "PrunedSmolLM3Model",
]
