"""What a launcher's environment says of this process: torchrun's, accelerate's, and whatever sets the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    import torch


def launched() -> tuple[int, int] | None:
    """This process's number and how many there are, as a launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT) says; None where it names no others."""
    told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    if not all(told):
        return None
    rank, size = _whole("RANK"), _whole("WORLD_SIZE")
    if size < 2:
        return None
    if not 0 <= rank < size:
        raise PrunekitError(f"RANK is {rank} and WORLD_SIZE is {size}; ranks count from 0 to one less than that.")
    return rank, size


def local_rank() -> int:
    """The number of this process on its machine."""
    return _whole("LOCAL_RANK", _whole("RANK"))


def local_size() -> int:
    """How many processes were started on this machine; where the launcher does not say, as many as there are."""
    told = launched()
    return 1 if told is None else max(1, _whole("LOCAL_WORLD_SIZE", told[1]))


def is_first_here() -> bool:
    """Whether this process is the first that a launcher started on its machine, or no launcher did."""
    try:
        return launched() is None or local_rank() == 0
    except PrunekitError:
        return True


def own_device(device: str) -> torch.device:
    """Where this rank's models are, its own GPU if on one."""
    import torch

    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        there, local = torch.cuda.device_count(), local_rank()
        if device not in ("auto", "cuda"):
            raise PrunekitError(
                f"Each process has a GPU of its own, so --device {device} can't name one for all; say --device cuda."
            )
        if _whole("LOCAL_WORLD_SIZE", local + 1) > there:
            raise PrunekitError(
                f"More processes were started on this machine than the {there} GPUs it has; start one a GPU, or say "
                "--device cpu."
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    if torch.backends.mps.is_available():
        raise PrunekitError("Several processes can't share the GPU of this machine; start one, or say --device cpu.")
    return torch.device("cpu")


def _whole(name: str, default: int | None = None) -> int:
    try:
        return int(os.environ[name]) if default is None or name in os.environ else default
    except (KeyError, ValueError):
        raise PrunekitError(
            f"The launcher's environment holds {name}={os.environ.get(name)!r}, which is no number; start prunekit "
            "with torchrun or accelerate launch, or unset it."
        ) from None
