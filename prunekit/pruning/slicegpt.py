"""SliceGPT (arXiv 2401.15024) with one rotation: hidden states are turned to their principal axes, and the least go.

With the gains of the norms folded into the matrices behind them, an RMSNorm doesn't see a rotation Q of its input, so
that x → xQ changes no logit where embeddings, the inputs of attention, FFN and head (W → WQ) and the outputs of the two
(W → QᵀW) turn with it. Then the d' leading axes are kept. The mean square of what is left is taken over d' instead of d
channels, which makes normalised states smaller by sqrt(d'/d); so each norm's gain becomes sqrt(d/d').

How this differs from the paper: it has a rotation of its own before every attention and FFN, and a matrix
Q_lᵀ Q_(l+1) beside each that takes the residual stream from one to the next. These matrices cost parameters and time,
and no stock architecture has them. Here one Q serves the whole model: the principal axes of the normalised states of
all places together. What is lost is larger, and the result is a stock checkpoint with a smaller hidden_size. A tied
head becomes untied, as in the paper's code, since the last norm's gain goes into the head alone; both count.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from prunekit.checkpoint.manifest import Written, written_once
from prunekit.checkpoint.overrides import LAYER
from prunekit.checkpoint.rebuild import converted, natural, stored_dtype, write_checkpoint
from prunekit.data.calibration import check_length, check_tokens
from prunekit.data.mixture import calibration_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.families import PRE_NORMS, Family
from prunekit.models.modeling import pruned_config, stock_config
from prunekit.models.source import load_tokenizer
from prunekit.plan import Plan, whole_plan
from prunekit.plan.shape import PRUNE_THE_ORIGINAL
from prunekit.utils.advance import Advance, untold
from prunekit.utils.numerics.finite import watched_layers
from prunekit.utils.phases.titles import TURNING
from prunekit.utils.process.ranks import rounds, share_of, sum_over_ranks
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.pruning.planner import PlanConfig

# Rows of a matrix that are turned at once, in float64.
_ROWS = 4096


def slice_model(
    source: Source,
    config: PlanConfig,
    out: Path,
    *,
    dense: DenseModel | None = None,
    multiple: int = 8,
    overwrite: bool = False,
    max_shard_bytes: int = 2 * 2**30,
) -> tuple[Plan, Written]:
    """Write ``source`` with the largest hidden_size that meets the target as the checkpoint ``out``.

    ``multiple`` is what the hidden_size is rounded to (the paper's 8); where the stock config wants a multiple of the
    number of heads, it is that instead. The plan that comes back, and lies in ``out``, keeps every unit; it tells what
    the model became and how. ``dense`` is the model, in ``config.dtype`` on ``config.device``, where other steps need
    it too. Raises PrunekitError where the family can't be turned, layers are to stay whole, the target is out of reach
    or the text too short.
    """
    if multiple < 1:
        raise PrunekitError(f"The hidden size is rounded to a multiple of at least 1, got {multiple}.")
    check_family(source.family)
    if config.recipe.protected is not None:
        raise PrunekitError("slicegpt narrows what all layers share, so none can be protected; leave it out.")
    source.shape.check_whole_layers(PRUNE_THE_ORIGINAL)
    config.target.check_method(config.recipe.method)
    dtype = stored_dtype(config.store_dtype)
    budget = config.target.budget(source.shape, (dtype or source.dtype).itemsize)
    multiple = hidden_multiple(source, multiple)
    width = widest_within(source, budget, multiple)
    new = sliced_config(source, width)
    dense = dense or DenseModel(source, dtype=config.dtype, device=config.device)
    text = config.recipe.calibration
    check_length(text, source.config)
    calibration = calibration_text(text, load_tokenizer(source), dense)
    check_tokens(calibration.blocks, source.config)
    model = dense.share()
    batches = -(-len(calibration.input_ids) // text.batch_size)
    with progress(TURNING, batches) as advance:
        axes, shares = principal_axes(model, source.family, calibration.input_ids, text.batch_size, advance)
    computed = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    del model
    changes = {"hidden_size": width, **({"tie_word_embeddings": False} if source.shape.tie_word_embeddings else {})}
    plan = replace(
        whole_plan(source.shape),
        changes=changes,
        provenance={
            "model": {
                "name": model_label(source.name),
                "family": source.family.name,
                "fingerprint": source.fingerprint,
            },
            "method": config.recipe.method.describe(),
            "target": {"asked": config.target.text, "parameters": budget},
            "rounding": {"hidden_multiple": multiple},
            "kept_variance": round(float(shares[:width].sum()), 6),
            "calibration": calibration.describe(),
            "computed_in": computed,
            "versions": versions(),
        },
        recipe=config.recipe.with_text(calibration.describe()["source"]),
    )
    tensors = TurnedTensors(source, axes[:, :width], dtype)
    written = written_once(
        lambda: write_checkpoint(source, plan, new, tensors, out, "per-layer", overwrite, max_shard_bytes)
    )
    return plan, written


def share_of_channels(source: Source, config: PlanConfig, multiple: int = 8) -> float:
    """Which share of the hidden size :func:`slice_model` will leave. Raises PrunekitError as that does of a family that
    can't be turned and a target that is out of reach."""
    check_family(source.family)
    config.target.check_method(config.recipe.method)
    itemsize = (stored_dtype(config.store_dtype) or source.dtype).itemsize
    budget = config.target.budget(source.shape, itemsize)
    return widest_within(source, budget, hidden_multiple(source, multiple)) / source.shape.hidden_size


def check_family(family: Family) -> None:
    """Raises PrunekitError where norms stand elsewhere than before attention, FFN and head."""
    if family.block_norms != PRE_NORMS or family.wide_norms:
        raise PrunekitError(
            f"slicegpt can't turn {family.name} models: they normalise what attention and FFN add to the hidden states "
            "with a gain for each channel, which a rotation would mix. Choose another --method."
        )


def sliced_config(source: Source, width: int) -> Any:
    """The config of ``source`` with ``width`` channels of hidden states and a head of its own.

    Raises PrunekitError where the stock config refuses them.
    """
    base = copy.deepcopy(source.config)
    # Left to itself, a config derives it from the hidden size.
    base.head_dim = source.shape.head_dim
    base.hidden_size = width
    base.tie_word_embeddings = False
    layers = source.shape.layers
    if source.shape.is_uniform:
        return stock_config(source.family, base, layers[0], range(len(layers)))
    return pruned_config(source.family, base, layers, range(len(layers)))


def hidden_multiple(source: Source, multiple: int) -> int:
    """``multiple``, or the number of heads where the config refuses hidden sizes that heads don't divide."""
    heads = source.shape.layers[0].num_attention_heads
    if multiple % heads == 0:
        return multiple
    try:
        sliced_config(source, multiple * (heads + 1))
    except PrunekitError:
        return heads
    return multiple


def widest_within(source: Source, budget: int, multiple: int) -> int:
    """The largest multiple of ``multiple`` for which the whole model has at most ``budget`` parameters.

    Raises PrunekitError where there is none.
    """
    untied = replace(source.shape, tie_word_embeddings=False)
    for width in range(source.shape.hidden_size // multiple * multiple, 0, -multiple):
        if replace(untied, hidden_size=width).parameters <= budget:
            return width
    raise PrunekitError(
        f"The target of {budget:,} parameters is out of reach for slicegpt: with a hidden size of {multiple}, the "
        f"least, {replace(untied, hidden_size=multiple).parameters:,} are left. Ask for a larger target."
    )


def principal_axes(
    model: Any,
    family: Family,
    input_ids: torch.Tensor,
    batch_size: int = 32,
    advance: Advance = untold,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Principal axes Q [d, d] of the hidden states of ``model``, float64 with the columns by falling share of the
    energy, and these shares [d].

    They are the eigenvectors of C = Σ xᵀx over the tokens of ``input_ids`` [sequences, length] and every place where a
    norm stands, x being divided by its root mean square, so that all places count alike. C is summed in float64, over
    the batches of all ranks.
    Raises PrunekitError where it is not finite.
    """
    size = model.config.hidden_size
    # MPS has no float64.
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    covariance = torch.zeros(size, size, dtype=torch.float64, device=device)

    def see(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x_Td = args[0].detach().flatten(0, -2).to(device).double()
        x_Td = x_Td * torch.rsqrt(x_Td.square().mean(1, keepdim=True) + model.config.rms_norm_eps)
        covariance.addmm_(x_Td.T, x_Td)

    names = [family.block_norms.pre_attention, family.block_norms.pre_ffn]
    norms = [layer.get_submodule(name) for layer in model.get_submodule("model.layers") for name in names if name]
    handles = [norm.register_forward_pre_hook(see) for norm in (*norms, model.get_submodule("model.norm"))]
    try:
        with torch.no_grad(), watched_layers(model.get_submodule("model.layers")):
            for some in rounds(input_ids.split(batch_size)):
                for batch in share_of(some):
                    model.base_model(input_ids=batch.to(model.device), use_cache=False)
                advance(len(some))
    finally:
        for handle in handles:
            handle.remove()
    sum_over_ranks(covariance)
    if not torch.isfinite(covariance).all():
        raise PrunekitError("Hidden states are not finite. Compute in float32 (--dtype float32).")
    values, axes = torch.linalg.eigh(covariance.cpu())
    return axes.flip(1).contiguous(), (values.flip(0) / values.sum()).clamp(min=0)


class TurnedTensors:
    """The tensors of ``source`` for hidden states xQ, with ``axes`` Q [d, d'] (orthonormal columns)."""

    def __init__(self, source: Source, axes: torch.Tensor, dtype: torch.dtype | None = None):
        self.dtype = dtype
        self.parameters = 0
        self._source, self._axes = source, axes.double()
        self._gain = math.sqrt(axes.shape[0] / axes.shape[1])
        self._gains: dict[str, torch.Tensor] = {}
        norms = source.family.block_norms
        self._norms = (norms.pre_attention, norms.pre_ffn)
        # A decoder that was saved without its head leaves the prefix out.
        names = [name for file in source.weight_files() for name in _names(file)]
        self._prefix = "" if any(name.startswith("model.") for name in names) else "model."
        self.count = len(names) + 1
        for name, tensor in self._read(self._is_norm):
            self._gains[name] = tensor.double() + source.family.norm_offset

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        tied = self._source.shape.tie_word_embeddings
        for name, tensor in self._read(lambda name: not (tied and name == "lm_head.weight")):
            yield self._finished(name, self._turned(name, tensor), tensor.dtype)
            if tied and name == "model.embed_tokens.weight":
                yield self._finished("lm_head.weight", self._turned("lm_head.weight", tensor), tensor.dtype)

    def _read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
        for file in self._source.weight_files():
            with safe_open(file, "pt") as handle:
                for stored in sorted(handle.keys(), key=natural):
                    name = stored if stored == "lm_head.weight" else self._prefix + stored
                    if wanted(name):
                        yield name, handle.get_tensor(stored)

    def _finished(self, name: str, tensor: torch.Tensor, stored: torch.dtype) -> tuple[str, torch.Tensor]:
        self.parameters += tensor.numel()
        return name, converted(name, tensor.to(stored), self.dtype).contiguous()

    def _is_norm(self, name: str) -> bool:
        match = LAYER.fullmatch(name)
        return name == "model.norm.weight" or bool(match and match[2].removesuffix(".weight") in self._norms)

    def _turned(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self._is_norm(name):
            return torch.full((self._axes.shape[1],), self._gain - self._source.family.norm_offset)
        if name == "model.embed_tokens.weight":
            return _by_rows(lambda rows: rows @ self._axes, tensor)
        if name == "lm_head.weight":
            return self._into(tensor, "model.norm.weight")
        match = LAYER.fullmatch(name)
        module, _, kind = match[2].rpartition(".") if match else ("", "", "")
        coupling = next((c for c in self._source.family.couplings if c.module == module), None)
        if match is None or coupling is None:
            return tensor
        if coupling.axis == 1:
            return self._axes.T @ tensor.double()
        if kind == "bias":
            return tensor
        return self._into(tensor, f"model.layers.{match[1]}.{self._norms['ffn' in coupling.parts]}.weight")

    def _into(self, tensor: torch.Tensor, norm: str) -> torch.Tensor:
        """A matrix [n, d] that reads normalised hidden states."""
        gain = self._gains[norm]
        return _by_rows(lambda rows: (rows * gain) @ self._axes, tensor)


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as handle:
        return list(handle.keys())


def _by_rows(change: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """``change`` of a matrix in float64, a few rows at a time and stored in the matrix's own dtype: an embedding table
    in float64 would be the largest thing in memory."""
    return torch.cat([change(rows.double()).to(tensor.dtype) for rows in tensor.split(_ROWS)])
