"""A training's curves for TensorBoard, written while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.utils.provenance import install_extra, installed

if TYPE_CHECKING:
    from prunekit.recovery.training.progress import Estimate, Listener

# What TensorBoard calls the fields of a step.
_NAMES = {"kl": "train/kl", "loss": "train/loss", "rate": "train/learning_rate", "norm": "train/gradient_norm"}


@contextmanager
def in_tensorboard(folder: Path, listener: Listener) -> Iterator[Listener]:
    """``listener``, which also writes what it is told into ``folder``, where `tensorboard --logdir` finds it: each
    step's divergence, loss, rate, gradient norm and speed, and what is measured on held-out text. Steps of stages count
    on from stage to stage. A training that goes on replaces the steps that it does again. Nothing that lies in the
    folder is changed.

    Raises PrunekitError where the package tensorboard is missing, or the folder can't be written.
    """
    if installed("tensorboard") is None:
        raise PrunekitError(f"--tensorboard needs the package tensorboard: {install_extra('tensorboard')}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrunekitError(
            f"{folder} can't be made: {error.strerror or error}; choose another --tensorboard."
        ) from None
    curves = _Curves(folder, listener)
    try:
        yield replace(listener, row=curves.row, estimate=curves.estimate)
    finally:
        curves.close()


class _Curves:
    def __init__(self, folder: Path, listener: Listener):
        self._folder, self._listener = folder, listener
        self._writer: Any = None
        self._step_tokens = 0.0
        self._open = True
        self._offsets: dict[int, int] = {}
        self._offset = 0

    def estimate(self, estimate: Estimate) -> None:
        self._listener.estimate(estimate)
        from torch.utils.tensorboard import SummaryWriter

        first = estimate.steps - estimate.left
        self._step_tokens = estimate.tokens / estimate.steps
        if self._open:
            # Not those of the step that comes next: what was measured there is not measured again.
            done = self._offset + first
            self._open = False
            with self._telling():
                self._writer = SummaryWriter(str(self._folder), purge_step=done + 1 if done else None)
        if first == 0:
            self._add(0, {"held_out/kl": estimate.start_kl})

    def row(self, row: dict[str, Any]) -> None:
        self._listener.row(row)
        if "stages" in row:
            steps = [each["steps"] for each in row["stages"]]
            self._offsets = {each["stage"]: sum(steps[:place]) for place, each in enumerate(row["stages"])}
        elif "phase" in row:
            self._offset = self._offsets.get(row["stage"], 0)
        elif "held_out" in row:
            held = row["held_out"]
            self._add(held["step"], {f"held_out/{name}": held[name] for name in ("kl", "loss")})
        elif "step" in row:
            speed = {"train/tokens_per_second": self._step_tokens / row["seconds"]} if row.get("seconds") else {}
            self._add(row["step"], {tag: row[name] for name, tag in _NAMES.items()} | speed)

    def close(self) -> None:
        with self._telling():
            if self._writer is not None:
                self._writer.close()

    def _add(self, step: int, values: dict[str, Any]) -> None:
        with self._telling():
            for tag, value in values.items():
                if self._writer is not None and value is not None:
                    self._writer.add_scalar(tag, value, self._offset + step)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """A training doesn't end because its curves can't be written."""
        try:
            yield
        except OSError as error:
            self._writer = None
            self._listener.note(f"No more curves are written into {self._folder}: {error.strerror or error}.")
