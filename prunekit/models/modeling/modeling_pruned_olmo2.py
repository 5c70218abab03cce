"""OLMo-2 with layers of different widths."""

from huggingface_hub.dataclasses import strict
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import (
    Olmo2DecoderLayer,
    Olmo2ForCausalLM,
    Olmo2Model,
    Olmo2PreTrainedModel,
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
class PrunedOlmo2Config(PerLayerConfigMixin, Olmo2Config):
    model_type = "pruned_olmo2"


class PrunedOlmo2Model(PerLayerModelMixin, Olmo2Model):
    config_class = PrunedOlmo2Config
    layer_class = Olmo2DecoderLayer


class PrunedOlmo2ForCausalLM(PerLayerCausalLMMixin, Olmo2ForCausalLM):
    config_class = PrunedOlmo2Config
    model_class = PrunedOlmo2Model


class PrunedOlmo2ForSequenceClassification(PerLayerSequenceClassificationMixin, Olmo2PreTrainedModel):
    config_class = PrunedOlmo2Config
    model_class = PrunedOlmo2Model


class PrunedOlmo2ForTokenClassification(PerLayerTokenClassificationMixin, Olmo2PreTrainedModel):
    config_class = PrunedOlmo2Config
    model_class = PrunedOlmo2Model


class PrunedOlmo2ForQuestionAnswering(PerLayerQuestionAnsweringMixin, Olmo2PreTrainedModel):
    config_class = PrunedOlmo2Config
    model_class = PrunedOlmo2Model


__all__ = [
    "PrunedOlmo2Config",
    "PrunedOlmo2ForCausalLM",
    "PrunedOlmo2ForQuestionAnswering",
    "PrunedOlmo2ForSequenceClassification",
    "PrunedOlmo2ForTokenClassification",
    "PrunedOlmo2Model",
]
