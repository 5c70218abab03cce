"""A checkpoint of a training: a model folder that anything loads, and beside the weights what else is needed to go on
as if nothing had stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit.checkpoint.manifest import TRAINING, verify
from prunekit.checkpoint.trained import write_trained
from prunekit.errors import PrunekitError
from prunekit.recovery.training.optimizer import Optimizer
from prunekit.recovery.training.progress import Standing
from prunekit.recovery.training.sharding import with_whole
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.leftovers import output_of
from prunekit.utils.process.ranks import from_first

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan
    from prunekit.recovery.training.run_folder import Checkpoints
    from prunekit.recovery.training.student import Student

_FORMAT = "prunekit-training-state"
_STATE, _MOMENTS, _ADAPTER, _RNG = "state.json", "moments.safetensors", "adapter.", "rng"
_FILE_BYTES = 2 * 2**30


def save(
    folder: Checkpoints, source: Source, plan: Plan, student: Student, optimizer: Optimizer, standing: Standing
) -> None:
    """Write the checkpoint of where ``standing`` stands, whole or not at all; then all others go but the best one's.

    Raises PrunekitError where it can't be written: the last one is still there.
    """
    adapters = {f"{_ADAPTER}{name}": each for name, each in student.adapters().items()}

    def write(groups: Sequence[Mapping[str, torch.Tensor]]) -> None:
        weights, kept = groups
        path = folder.checkpoint(standing.step)
        if not path.exists():
            beside = partial(write_state, kept=kept, standing=standing)
            write_trained(source, plan, weights, path, dtype="float32", beside=beside)
        folder.keep(standing.step, int(standing.best["step"]))

    with_whole(write, student.own_weights(), {**optimizer.own_moments(), **adapters})


def write_state(checkpoint: Path, kept: Mapping[str, torch.Tensor], standing: Standing) -> None:
    """Put what is ``kept`` beside the weights of the ``checkpoint``, which is being written: in files of 2 GiB, so that
    no more of it has to be in memory."""
    place = checkpoint / TRAINING
    place.mkdir()
    # The generator of random numbers: nothing draws from it today, and what might must not begin anew.
    held = {_RNG: torch.get_rng_state()}
    size = files = 0
    for name in kept:
        tensor = kept[name].detach().cpu().contiguous()
        if size and size + tensor.nbytes > _FILE_BYTES:
            _save(held, place / _moments_file(files))
            held, size, files = {}, 0, files + 1
        held[name] = tensor
        size += tensor.nbytes
    _save(held, place / _moments_file(files))
    state = {"format": _FORMAT, "standing": standing.to_dict()}
    (place / _STATE).write_text(json.dumps(state, allow_nan=False) + "\n", encoding="utf-8")


def _moments_file(number: int) -> str:
    return _MOMENTS if not number else f"moments-{number:05d}.safetensors"


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise PrunekitError(
            f"The state of the training could not be written to {output_of(file.parent.parent)} ({error}). Free some "
            "space or choose another place; the checkpoint before it is still there."
        ) from None


def load(checkpoint: Path, student: Student, optimizer: Optimizer) -> Standing:
    """Bring ``student`` and ``optimizer`` to where the ``checkpoint`` was written.

    Raises PrunekitError where a file of it is missing or has changed.
    """
    from_first(lambda: check(checkpoint))
    standing, kept = read_state(checkpoint)
    torch.set_rng_state(kept[_RNG])
    adapters = {name.removeprefix(_ADAPTER): kept[name] for name in kept if name.startswith(_ADAPTER)}
    student.load(checkpoint, adapters)
    optimizer.load(kept, standing.updates)
    return standing


def take_over(folder: Path, optimizer: Optimizer) -> int:
    """Let ``optimizer`` go on with the state that lies beside the weights in ``folder``. Returns how many updates it
    has made."""
    from_first(lambda: check(folder))
    standing, kept = read_state(folder)
    optimizer.load(kept, standing.updates)
    return standing.updates


def has_state(folder: Path) -> bool:
    """Whether the state of an optimizer lies beside the weights in ``folder``."""
    return (folder / TRAINING).is_dir()


class Kept(Mapping[str, torch.Tensor]):
    """The tensors that :func:`write_state` put into the folder ``place``, each of which is read when it is asked for:
    a rank that holds a part of each never has them all."""

    def __init__(self, place: Path):
        from safetensors import safe_open

        handles = [safe_open(file, "pt") for file in sorted(place.glob("moments*.safetensors"))]
        self._handles = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._handles[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


def moments_of(kept: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the optimizer among what was ``kept``."""
    return {name: kept[name] for name in kept if name != _RNG and not name.startswith(_ADAPTER)}


def check(checkpoint: Path) -> None:
    """Raises PrunekitError where a file of the ``checkpoint`` is missing or has changed."""
    report = verify(checkpoint)
    if report.damaged:
        raise PrunekitError(
            f"{checkpoint} is damaged: {report.damaged[0]} changed since it was written. Delete that folder to go on "
            "from an earlier checkpoint."
        )


def read_state(checkpoint: Path) -> tuple[Standing, Kept]:
    """What :func:`write_state` put beside the weights of the ``checkpoint``, which is sound (:func:`check`)."""
    return read_standing(checkpoint), Kept(checkpoint / TRAINING)


def read_standing(checkpoint: Path) -> Standing:
    """Where the ``checkpoint`` was written. Raises PrunekitError where it does not say so."""
    path = checkpoint / TRAINING / _STATE
    data: Any = read_json(path, "state of the training")
    try:
        if data["format"] != _FORMAT:
            raise ValueError("it is another file")
        return Standing(**data["standing"])
    except (KeyError, TypeError, ValueError) as error:
        raise PrunekitError(
            f"{path} is no state of a training ({error}). Delete {checkpoint} to go on from an earlier checkpoint, or "
            f"{checkpoint.parent} to begin anew."
        ) from None
