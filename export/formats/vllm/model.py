"""Every pruned family as a model of vLLM: fused products, and layers each of its own width."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP, SupportsQuant
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    extract_layer_index,
    is_pp_missing_parameter,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from prunekit.export.formats.vllm.blueprint import Blueprint, describe
from prunekit.export.formats.vllm.layers import PrunedLayer, make_norm
from prunekit.export.formats.vllm.weights import STACKED, padded_width, pieces

# Named here, since vLLM can't read annotations that are text.
_DYNAMIC = {"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}


def ffn_widths(blueprint: Blueprint, vllm_config: VllmConfig) -> tuple[int, ...]:
    """FFN channels that each layer has in memory. Scales of stored quantized weights, and adapters, belong to the
    checkpoint's own channels, so nothing is padded where there are any."""
    stored = getattr(vllm_config.model_config.hf_config, "quantization_config", None)
    widths = tuple(layer.shape.intermediate_size for layer in blueprint.layers)
    if stored is not None or vllm_config.lora_config is not None:
        return widths
    return tuple(padded_width(width, get_tensor_model_parallel_world_size()) for width in widths)


@support_torch_compile(dynamic_arg_dims=_DYNAMIC)
class PrunedModel(nn.Module):
    """The decoder: embedding, layers, last norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.quant_config = vllm_config.quant_config
        self.blueprint = describe(self.config)
        # Every layer says its own window; vLLM would give this one to those that have none.
        vllm_config.cache_config.sliding_window = None
        self.ffn = ffn_widths(self.blueprint, vllm_config)
        scale, dtype = self.blueprint.embedding_scale, vllm_config.model_config.dtype
        # Rounded as the model's precision rounds it, which it was trained with. A number, which a CUDA graph can hold.
        self.scale = None if scale is None else torch.tensor(scale, dtype=dtype, device="cpu").item()
        group = get_pp_group()
        if group.is_first_rank or (self.blueprint.tied and group.is_last_rank):
            self.embed_tokens = VocabParallelEmbedding(
                self.blueprint.vocab_size, self.blueprint.hidden_size, prefix=f"{prefix}.embed_tokens"
            )
        else:
            self.embed_tokens = PPMissingLayer()

        def make_layer(prefix: str) -> PrunedLayer:
            index = extract_layer_index(prefix)
            return PrunedLayer(vllm_config, self.blueprint, index, self.ffn[index], prefix)

        self.start_layer, self.end_layer, self.layers = make_layers(
            len(self.blueprint.layers), make_layer, prefix=f"{prefix}.layers"
        )
        self.norm = make_norm(self.blueprint, self.blueprint.hidden_size) if group.is_last_rank else PPMissingLayer()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], self.blueprint.hidden_size
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed_tokens(input_ids)
        return hidden if self.scale is None else hidden * self.scale

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        residual: Tensor | None
        if get_pp_group().is_first_rank:
            hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds  # type: ignore[arg-type]
            residual = None
        else:
            assert intermediate_tensors is not None
            hidden, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden, residual = layer(positions, hidden, residual)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden, "residual": residual})
        hidden, _ = self.norm(hidden, residual)
        return hidden


class PrunedForCausalLM(nn.Module, SupportsLoRA, SupportsPP, SupportsQuant):
    """What plugin.py registers for the architecture of every pruned family."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        fused: [name for name, (into, _) in STACKED.items() if into == fused] for fused, _ in STACKED.values()
    }
    embedding_modules: ClassVar[dict[str, str]] = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.model = PrunedModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.blueprint = self.model.blueprint
        stored = {coupling.module.rpartition(".")[2] for coupling in self.blueprint.family.couplings}
        # Adapters of a family that has fused projections are fused too.
        self.packed_modules_mapping = {  # type: ignore[misc]
            fused: [fused] if fused in stored else parts for fused, parts in type(self).packed_modules_mapping.items()
        }
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                self.blueprint.vocab_size,
                self.blueprint.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if self.blueprint.tied:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        else:
            self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(self.blueprint.vocab_size, soft_cap=self.blueprint.logit_softcap)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        made: Tensor | IntermediateTensors = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        return made

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill the parameters from a checkpoint's tensors. Raises ValueError for a tensor that has no place."""
        parameters: dict[str, Any] = dict(self.named_parameters())
        loaded = set()
        for piece in pieces(weights, self.blueprint, self.model.ffn):
            if is_pp_missing_parameter(piece.name, self):
                continue
            if piece.name not in parameters:
                raise ValueError(f"The checkpoint has a tensor for {piece.name}, which its config.json does not name.")
            parameter = parameters[piece.name]
            load = getattr(parameter, "weight_loader", default_weight_loader)
            part = () if piece.part is None else (piece.part,)
            load(parameter, piece.tensor, *part)
            loaded.add(piece.name)
        return loaded
