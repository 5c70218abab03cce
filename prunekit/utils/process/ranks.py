"""Several processes that a launcher started for one command, such as ``torchrun --nproc-per-node 4 -m prunekit ...``.

    with joined():
        for batch in share_of(batches):
            total += moments(batch)
        sum_over_ranks(total)

One process has rank 0 and size 1; nothing is initialised then, and every function here does nothing. What is said below
of "all ranks" has to be done by all of them, in the same order. Tensors travel as they are and other values as JSON:
nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from prunekit.errors import PrunekitError
from prunekit.utils.process.launcher import is_first_here, launched, own_device

if TYPE_CHECKING:
    import torch

    from prunekit.utils.process.rank_group import Group

T = TypeVar("T")

# Smaller tensors are summed together.
_SMALL = 1 << 20
_group: Group | None = None


def join(device: str = "auto") -> None:
    """Meet the other processes that the launcher started; nothing where there are none, or it is done already.

    Models on GPUs are on that of LOCAL_RANK afterwards, which ``cuda`` means from then on; ``device`` is where they
    will be (:func:`prunekit.models.source.pick_device`). Raises PrunekitError where the others don't come within five
    minutes, or a GPU for each is missing.
    """
    global _group
    told = launched()
    if told is None or _group is not None:
        return
    # Where a process is lost, what the others are told is a sentence, and not what each of their threads came upon.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from prunekit.utils.process.rank_group import Group

    _group = Group(*told, own_device(device))


def leave() -> None:
    """Part from the others, where all ranks have done their work."""
    global _group
    if _group is not None:
        barrier()
        _group.close()
        _group = None


def fail(message: str, tell: Callable[[], None]) -> None:
    """Let the other ranks end too, where this one can't go on; each raises PrunekitError with the words ``message``
    where it next waits for others. ``tell``, which tells the user, is called on one rank alone, or on one of each
    machine where they have not joined. This process should end now: what it was waiting for never comes."""
    if _group is not None:
        _group.fail(message, tell)
    elif is_first_here():
        tell()


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """All ranks in the block: :func:`join`, then :func:`leave`, or :func:`fail` where it raises. In another such block
    nothing is done."""
    global _group
    if _group is not None:
        yield
        return
    join(device)
    try:
        yield
    except BaseException as error:
        fail(str(error) if isinstance(error, PrunekitError) else ended_by(error), lambda: None)
        _group = None
        raise
    leave()


def ended_by(error: BaseException | None) -> str:
    """What the others are told where this rank ends by an exception that is no PrunekitError."""
    why = "was stopped" if error is None or not isinstance(error, Exception) else f"failed ({type(error).__name__})"
    return f"Process {rank()} of {size()} {why}, and all end with it; its own output says more."


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _group is None else _group.rank


def size() -> int:
    """How many processes there are."""
    return 1 if _group is None else _group.size


def is_first() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return rank() == 0


@overload
def share_of(items: int) -> range: ...
@overload
def share_of(items: torch.Tensor) -> torch.Tensor: ...
@overload
def share_of(items: Sequence[T]) -> Sequence[T]: ...
def share_of(items: Any) -> Any:
    """This rank's part of ``items``, or of the numbers below it: they are dealt out one by one, so that item i goes to
    rank i mod size."""
    whole = range(items) if isinstance(items, int) else items
    return whole[rank() :: size()]


def rounds(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """``items`` in the order of :func:`share_of`, as many at a time as there are ranks: the last may be fewer."""
    for start in range(0, len(items), size()):
        yield items[start : start + size()]


def sum_over_ranks(*tensors: torch.Tensor, onto: int | None = None) -> None:
    """Add up each of ``tensors`` over all ranks, in place. All ranks get the same sums, bit for bit, and get them
    again in another run on as many; where rank ``onto`` alone needs them, the others' tensors are spoilt."""
    if _group is None or not tensors:
        return
    import torch

    group = _group
    large = [tensor for tensor in tensors if tensor.is_contiguous() and tensor.nbytes >= _SMALL]
    kept = {id(tensor) for tensor in large}
    small: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        if id(tensor) not in kept:
            small.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    with torch.no_grad():
        flat = [torch.cat([tensor.reshape(-1) for tensor in some]) for some in small.values()]
        group.finish([_sum(tensor, onto) for tensor in (*large, *flat)])
        for some, sums in zip(small.values(), flat, strict=True):
            for tensor, piece in zip(some, sums.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(piece.view(tensor.shape))


def _sum(tensor: torch.Tensor, onto: int | None) -> Any:
    import torch.distributed as dist

    tensor = tensor.detach()
    return dist.all_reduce(tensor, async_op=True) if onto is None else dist.reduce(tensor, onto, async_op=True)


def gathered(tensor: torch.Tensor, onto: int) -> list[torch.Tensor]:
    """Every rank's ``tensor``, all of one shape and dtype, in the order of ranks; on the others than rank ``onto``
    nothing."""
    if _group is None:
        return [tensor]
    import torch
    import torch.distributed as dist

    tensor = tensor.detach().contiguous()
    made = [torch.empty_like(tensor) for _ in range(_group.size)] if _group.rank == onto else None
    _group.finish([dist.gather(tensor, made, onto, async_op=True)])
    return made or []


def shared(value: T, by: int = 0) -> T:
    """The ``value`` of rank ``by`` on all ranks; that of the others is not looked at.

    It is of what JSON holds, which makes lists of tuples, and of tensors, at any depth; tensors arrive on the device of
    the same kind. On rank ``by`` it is the very object.
    """
    if _group is None:
        return value
    import torch

    group = _group
    own: list[torch.Tensor] = []
    text = json.dumps(_packed(value, own)).encode() if group.rank == by else b""
    count = torch.tensor([len(text)])
    _send(count, by)
    given = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(int(count), dtype=torch.uint8)
    _send(given, by)
    if group.rank == by:
        for tensor in own:
            _send(tensor, by)
        return value
    made: T = _unpacked(json.loads(given.numpy().tobytes()), by)
    return made


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` gives on rank 0, :func:`shared` with all; the other ranks don't call it. A PrunekitError is raised
    on all."""
    if _group is None:
        return make()
    made, said = None, None
    if is_first():
        try:
            made = make()
        except PrunekitError as error:
            said = str(error)
    if (said := shared(said)) is not None:
        raise PrunekitError(said)
    return shared(made)  # type: ignore[return-value]


def in_order(mine: Sequence[T], count: int) -> list[T]:
    """What all ranks made of ``count`` items, in the items' order and :func:`shared`; ``mine`` is what this one made of
    its :func:`share_of` them."""
    if _group is None:
        return [*mine]
    made = []
    for place in range(count):
        own: Any = mine[place // size()] if place % size() == rank() else None
        made.append(shared(own, place % size()))
    return made


def barrier() -> None:
    """Wait until all ranks are here."""
    any_rank(False)


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank."""
    if _group is None:
        return flag
    import torch

    count = torch.tensor([int(flag)])
    sum_over_ranks(count)
    return bool(count)


def _send(tensor: torch.Tensor, by: int) -> None:
    """Copy the bytes of rank ``by``'s ``tensor`` into those of the others, which have its shape and dtype."""
    import torch
    import torch.distributed as dist

    assert _group is not None
    # As bytes, since not every collective takes every dtype.
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if raw.numel():
        _group.finish([dist.broadcast(raw, by, async_op=True)])


def _packed(value: Any, tensors: list[torch.Tensor]) -> Any:
    """``value`` as JSON takes it, with the ``tensors`` in it taken out."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), value.device.type]}
    if isinstance(value, dict):
        return {"map": [[key, _packed(each, tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_packed(each, tensors) for each in value]}
    return value


def _unpacked(value: Any, by: int) -> Any:
    """Reverse of :func:`_packed`, on a rank that is sent the tensors in their order."""
    import torch

    assert _group is not None
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "map":
        return {key: _unpacked(each, by) for key, each in held}
    if kind == "list":
        return [_unpacked(each, by) for each in held]
    dtype, shape, place = held
    device = _group.device if place == _group.device.type else torch.device("cpu")
    made = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
    _send(made, by)
    return made
