"""A pruned model without its files: what a checkpoint would hold, put together in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.layout import configuration
from prunekit.checkpoint.rebuild import cut_tensors
from prunekit.errors import PrunekitError
from prunekit.models.modeling import pruned_class, register_pruned
from prunekit.models.source import pick_device, pick_dtype
from prunekit.plan import Plan
from prunekit.utils.numerics.finite import check_made
from prunekit.utils.quiet import quiet

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source


def pruned_in_memory(
    source: Source,
    plan: Plan,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    ffn_multiple: int = 1,
) -> Any:
    """The model that :func:`~prunekit.checkpoint.rebuild.rebuild` would write of ``source`` by ``plan``, with the same
    ``weights`` and ``ffn_multiple``, as :func:`~prunekit.models.source.load_model` would open it: the same tensors,
    rounded to the dtype that they would be stored in, in the same class. Nothing is written.

    Raises PrunekitError where a tensor is not finite, or the plan leaves one out.
    """
    place, wanted = pick_device(device), pick_dtype(dtype) or source.dtype
    register_pruned()
    config, _ = configuration(source, plan, "per-layer", ffn_multiple)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in cut_tensors(source, plan, None, weights, ffn_multiple):
        check_made(name, tensor)
        state[name] = tensor
    family = source.family
    stock = config.architectures[0] == family.causal_lm_class
    kind = family.stock(family.causal_lm_class) if stock else pruned_class(family, "ForCausalLM")
    options = {"attn_implementation": family.attn_implementation} if family.attn_implementation else {}
    with quiet():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=wanted, output_loading_info=True, **options
        )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise PrunekitError(f"The plan does not fit {source.name}: it would leave tensors out. Make the plan again.")
    return model.eval().to(place)
