"""Pruned models as optimum's exporters describe models: inputs, outputs, dummy inputs whose KV shapes differ by layer.

optimum's core has the base classes; its ONNX configs live in optimum-onnx, which transformers 5 rules out.
"""

from __future__ import annotations

from typing import Any

from optimum.exporters.base import ExporterConfig
from optimum.utils.input_generators import DEFAULT_DUMMY_SHAPES, DummyInputGenerator, DummyTextInputGenerator
from optimum.utils.normalized_config import NormalizedTextConfig

from prunekit.models.source import Source
from prunekit.plan.shape import ModelShape

BATCH = "batch_size"
LENGTH = "sequence_length"
PAST = "past_sequence_length"
TOTAL = f"{PAST} + {LENGTH}"
# How many of the last positions get logits: 0 is all. A graph input that has this as its default.
KEEP = "num_logits_to_keep"
_DUMMY_PAST = 5


class NormalizedPrunedConfig(NormalizedTextConfig):
    """A config's widths by the names that optimum's generators ask for. Those that differ by layer are in ``shape``:
    a per-layer config refuses to name one number for all."""

    def __init__(self, config: Any, shape: ModelShape):
        super().__init__(config)
        self.shape = shape

    @property
    def vocab_size(self) -> int:
        return self.shape.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.shape.hidden_size

    @property
    def num_layers(self) -> int:
        return self.shape.num_hidden_layers


class DummyPositions(DummyTextInputGenerator):
    """Ids, and a mask and positions that count the tokens in the cache too."""

    SUPPORTED_INPUT_NAMES = ("input_ids", "attention_mask", "position_ids")

    def __init__(self, task: str, normalized_config: Any, past_sequence_length: int = _DUMMY_PAST, **sizes: Any):
        super().__init__(task, normalized_config, **sizes)
        self.past = past_sequence_length

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        if input_name == "input_ids":
            return super().generate(input_name, framework, int_dtype, float_dtype)
        import torch

        if input_name == "attention_mask":
            return torch.ones(self.batch_size, self.past + self.sequence_length, dtype=getattr(torch, int_dtype))
        positions = torch.arange(self.past, self.past + self.sequence_length, dtype=getattr(torch, int_dtype))
        return positions.expand(self.batch_size, -1).contiguous()


class DummyPerLayerCache(DummyInputGenerator):
    """``past_key_values.N.key`` and ``.value``, each with its layer's own number of KV heads:
    [batch_size, K_N, past_sequence_length, head_dim]."""

    SUPPORTED_INPUT_NAMES = ("past_key_values.",)

    def __init__(
        self,
        task: str,
        normalized_config: NormalizedPrunedConfig,
        batch_size: int = DEFAULT_DUMMY_SHAPES["batch_size"],
        past_sequence_length: int = _DUMMY_PAST,
        **_: Any,
    ):
        self.batch_size, self.past = batch_size, past_sequence_length
        self.shape = normalized_config.shape

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        heads = self.shape.layers[int(input_name.split(".")[1])].num_key_value_heads
        size = [self.batch_size, heads, self.past, self.shape.head_dim]
        return self.random_float_tensor(size, -1, 1, framework=framework, dtype=float_dtype)


class PrunedOnnxConfig(ExporterConfig):
    """How a causal LM of per-layer widths is exported with its KV cache.

    ``PrunedOnnxConfig.of(source, "fp16")``; ``inputs`` and ``outputs`` map names to axis names as optimum's ONNX
    configs do, ``generate_dummy_inputs(batch_size=…, sequence_length=…, past_sequence_length=…)`` makes what is traced.
    """

    DUMMY_INPUT_GENERATOR_CLASSES = (DummyPositions, DummyPerLayerCache)

    def __init__(self, config: Any, shape: ModelShape, *, int_dtype: str = "int64", float_dtype: str = "fp32"):
        self.shape = shape
        # The base class makes its normalised config of the config alone.
        self.NORMALIZED_CONFIG_CLASS = lambda given: NormalizedPrunedConfig(given, shape)
        super().__init__(config, "text-generation", int_dtype, float_dtype)

    @classmethod
    def of(cls, source: Source, float_dtype: str = "fp32") -> PrunedOnnxConfig:
        return cls(source.config, source.shape, float_dtype=float_dtype)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "input_ids": {0: BATCH, 1: LENGTH},
            "attention_mask": {0: BATCH, 1: TOTAL},
            "position_ids": {0: BATCH, 1: LENGTH},
            **self.cache("past_key_values", PAST),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        logits = {name: {0: BATCH, 1: LENGTH} for name in super().outputs}
        return {**logits, **self.cache("present", TOTAL)}

    def cache(self, prefix: str, length: str) -> dict[str, dict[int, str]]:
        """Names and axes of the cache's tensors, key before value, layer by layer."""
        layers = range(self.shape.num_hidden_layers)
        return {f"{prefix}.{layer}.{kind}": {0: BATCH, 2: length} for layer in layers for kind in ("key", "value")}
