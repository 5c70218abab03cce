"""A model spread over the processes of one launch: each holds a part of every layer's weights, gradients and moments
(FSDP2, torch.distributed.fsdp.fully_shard). With one process nothing here does anything.

Embeddings, head and the last norm stay whole everywhere: a tied table in two groups, and a vocabulary that does not
divide by the number of processes, are where sharding went wrong without a word (pytorch#176076), and one more copy of
them is small beside the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.utils.process import ranks


def shard(model: Any) -> None:
    """Spread the layers of ``model`` over all ranks, which have it alike. Layers may differ in their widths."""
    if ranks.size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    base = model.base_model
    mesh = init_device_mesh(model.get_input_embeddings().weight.device.type, (ranks.size(),))
    for layer in base.layers:
        fully_shard(layer, mesh=mesh)
    inside = {id(each) for each in base.layers.parameters()}
    fully_shard(base, mesh=mesh, ignored_params={each for each in base.parameters() if id(each) not in inside})


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each rank holds a part of it."""
    if ranks.size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` by their names, none of them spread: where there are several ranks, on rank 0 alone, in the CPU's
    memory. All ranks have to ask for the same, in the same order."""
    if ranks.size() == 1:
        return dict(tensors)
    made = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        if ranks.is_first():
            made[name] = full.detach().cpu()
    return made


def with_whole(
    use: Callable[[Sequence[Mapping[str, torch.Tensor]]], None], *groups: Mapping[str, torch.Tensor]
) -> None:
    """Let ``use`` have the tensors of ``groups``, none of them spread: where there are several ranks, on rank 0 alone,
    in the CPU's memory, and each gathered when it is asked for, so that they are never there all at once. All ranks
    call this with the same groups. A PrunekitError of ``use`` is raised on all."""
    if ranks.size() == 1:
        use(groups)
        return
    said: PrunekitError | None = None
    if ranks.is_first():
        try:
            use([_Gathered(each, place) for place, each in enumerate(groups)])
        except PrunekitError as error:
            said = error
        ranks.shared(None)
    else:
        while (wanted := ranks.shared(None)) is not None:
            place, name = wanted
            groups[place][name].full_tensor()  # type: ignore[attr-defined]

    def end() -> None:
        if said is not None:
            raise said

    ranks.from_first(end)


class _Gathered(Mapping[str, torch.Tensor]):
    """Group number ``place`` of :func:`with_whole` on rank 0, which asks the others for what it is asked for."""

    def __init__(self, own: Mapping[str, torch.Tensor], place: int):
        self._own, self._place = own, place

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._own[name]
        if is_sharded(tensor):
            ranks.shared([self._place, name])
            tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        return tensor.detach().cpu()

    def __contains__(self, name: object) -> bool:
        return name in self._own

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


@torch.no_grad()
def take(own: torch.Tensor, given: torch.Tensor) -> None:
    """Copy ``given``, which every rank has whole, into ``own``: this rank's part of it."""
    own.copy_(like(own, given))


def like(own: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """``given``, which every rank has whole, on the device of ``own`` and spread as that is."""
    placed = given.to(own.device, own.dtype)
    if not is_sharded(own):
        return placed
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(placed, own.device_mesh, own.placements, src_data_rank=None)  # type: ignore[attr-defined]


def average(parameters: Iterable[nn.Parameter]) -> None:
    """Make the gradients of weights that every rank has whole the mean over all ranks, as those of sharded ones are."""
    if ranks.size() == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None and not is_sharded(each)]
    ranks.sum_over_ranks(*gradients)
    for gradient in gradients:
        gradient.div_(ranks.size())


def clip(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scale the gradients so that their norm is ``most`` at most, as torch.nn.utils.clip_grad_norm_ does. Returns the
    norm as it was."""
    moving = [each for each in parameters if each.grad is not None]
    if ranks.size() == 1:
        return float(nn.utils.clip_grad_norm_(moving, most, foreach=True))
    sharded = [each.grad.to_local() for each in moving if is_sharded(each)]  # type: ignore[union-attr]
    others = [each.grad for each in moving if not is_sharded(each)]
    parts = torch.zeros((), dtype=torch.float64, device=moving[0].device)
    for part in sharded:
        parts += part.double().square().sum()
    ranks.sum_over_ranks(parts)
    squares = float(parts) + sum(float(each.double().square().sum()) for each in others if each is not None)
    norm = squares**0.5
    # The formula of torch's own.
    scale = min(1.0, most / (norm + 1e-6)) if norm == norm else 1.0
    for part in (*sharded, *others):
        if part is not None:
            part.mul_(scale)
    return norm
