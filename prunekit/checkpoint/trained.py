"""A checkpoint whose weights were trained: the same configuration and plan with other numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.rebuild import Written, converted, stored_dtype, write_checkpoint
from prunekit.checkpoint.record import read_record
from prunekit.errors import PrunekitError
from prunekit.models.folder import read_tensors
from prunekit.plan import Plan
from prunekit.plan.plan import whole_plan

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source

PLAN = "plan.json"


def plan_of(source: Source) -> Plan:
    """The plan that the pruned model ``source`` was made by; one that keeps everything where it has none."""
    if (source.path / PLAN).is_file():
        try:
            plan = Plan.load(source.path / PLAN)
        except PrunekitError:  # of another version, or somebody's file of that name
            return whole_plan(source.shape)
        if len(plan.layers) == source.shape.num_hidden_layers and plan.shape.hidden_size == source.shape.hidden_size:
            return plan
    return whole_plan(source.shape)


def with_recovery(plan: Plan, told: Mapping[str, Any]) -> Plan:
    """``plan`` with one more training in its history. ``told`` holds JSON values."""
    history = [*plan.provenance.get("recovery", ()), dict(told)]
    return replace(plan, provenance={**plan.provenance, "recovery": history}, file=None)


def write_trained(
    source: Source,
    plan: Plan,
    weights: Mapping[str, torch.Tensor],
    out: Path,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    max_shard_bytes: int = 2 * 2**30,
    beside: Callable[[Path], None] = lambda folder: None,
) -> Written:
    """Write ``source`` with other ``weights``, by the names of its own, as the checkpoint ``out``, atomically.

    ``dtype`` auto stores each as ``source`` does; ``beside`` adds files to the folder before they are listed. Raises
    PrunekitError where a weight is missing, does not fit its dtype or is not finite, or the checkpoint can't be
    written.
    """
    record = read_record(source.config)
    layout = record.layout if record else "per-layer"
    tensors = _Trained(source, weights, dtype)
    config = copy.deepcopy(source.config)
    return write_checkpoint(source, plan, config, tensors, out, layout, overwrite, max_shard_bytes, beside)  # type: ignore[arg-type]


class _Trained:
    """The tensors of the checkpoint, in the order of the source's files."""

    def __init__(self, source: Source, weights: Mapping[str, torch.Tensor], dtype: str):
        self.dtype = stored_dtype(dtype)
        self.parameters = 0
        self._stored = read_tensors(source.path)
        self._weights = weights
        tied = source.shape.tie_word_embeddings
        self._names = [name for name in self._stored if not (tied and name == "lm_head.weight")]
        self.count = len(self._names)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        own = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        for name in self._names:
            full = name if name in self._weights else f"model.{name}"
            if full not in self._weights:
                raise PrunekitError(f"The trained model has no weight {name}; the folder it came from has changed.")
            tensor = converted(name, self._weights[full].detach(), self.dtype or own[self._stored[name].dtype])
            self.parameters += tensor.numel()
            yield full, tensor.cpu().contiguous()
