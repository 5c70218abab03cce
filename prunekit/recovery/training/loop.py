"""The training itself: steps, held-out measurements, checkpoints when they are due."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.teachers.online import Teacher
from prunekit.recovery.training.gradient import Gradient
from prunekit.recovery.training.optimizer import Optimizer
from prunekit.recovery.training.progress import Standing
from prunekit.recovery.training.schedule import Span
from prunekit.recovery.training.student import Student

if TYPE_CHECKING:
    from prunekit.data.token_file import PackedText

# Steps in a row that are not finite, after which going on makes no sense.
_MOST_SKIPPED = 3
# Where the held-out text is measured, as shares of all steps.
_MEASURED_AT = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Events:
    """What the loop tells: ``on_step`` of every step, with the seconds it took; ``on_held_out`` of every measurement;
    ``note`` says in a sentence what a user should know; ``save`` is asked to keep all of it, with the reason ("time",
    "best"); ``due`` says whether so much time has gone by."""

    on_step: Callable[[dict[str, float], float], None] = lambda row, seconds: None
    on_held_out: Callable[[dict[str, float]], None] = lambda row: None
    note: Callable[[str], None] = lambda text: None
    save: Callable[[str], None] = lambda why: None
    due: Callable[[], bool] = lambda: False


class Diverged(PrunekitError):
    """A training whose numbers are none."""


class Training:
    """``student`` on its way to ``teacher`` on ``text``: the steps of ``span``, of ``sequences`` windows each, from
    where ``standing`` stands. Where this is a stage of several, its text follows on that of those before."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        text: PackedText,
        config: TrainingConfig,
        optimizer: Optimizer,
        standing: Standing,
        *,
        span: Span,
        sequences: int,
        events: Events | None = None,
    ):
        self.student, self.teacher, self.text, self.config = student, teacher, text, config
        self.optimizer, self.standing, self.span, self.sequences = optimizer, standing, span, sequences
        self.events = events or Events()
        self._gradient = Gradient(student, teacher, config.ce_share, standing, lambda text: self.events.note(text))
        self._measured = {max(1, math.ceil(share * span.steps)) for share in _MEASURED_AT}

    def run(self) -> None:
        """Train to the last step.

        Raises PrunekitError where steps are not finite three times in a row, or one sequence does not fit into memory.
        """
        standing, events = self.standing, self.events
        if not standing.held_out:
            self.measure()
        while standing.step < self.span.steps:
            began = time.perf_counter()
            row = self._step()
            seconds = time.perf_counter() - began
            standing.seconds += seconds
            events.on_step(row, seconds)
            measured = standing.step in self._measured
            if measured:
                self.measure()
            # The last step's weights are written as the result, or not at all.
            if standing.step < self.span.steps:
                if measured and standing.best is standing.held_out[-1]:
                    events.save("best")
                elif events.due():
                    events.save("time")

    def measure(self) -> dict[str, float]:
        """Divergence and loss on the held-out windows, nats a token: noted, told and returned.

        Raises PrunekitError where they are not finite.
        """
        row = {"step": self.standing.step, **self.look()}
        if not all(map(math.isfinite, row.values())):
            raise Diverged(f"The held-out loss is not finite after step {self.standing.step}.")
        self.standing.held_out.append(row)
        self.events.on_held_out(row)
        return row

    def look(self) -> dict[str, float]:
        """What :meth:`measure` measures, of the weights as they are now, and nothing is noted."""
        held = self.text.held_out
        sums = self._gradient.measure(held)
        count, length = held.ids.shape
        return {"kl": float(sums.kl) / (count * length), "loss": float(sums.ce) / (count * (length - 1))}

    def _step(self) -> dict[str, float]:
        standing = self.standing
        windows = self.text.batch((self.span.offset + standing.step) * self.sequences, self.sequences)
        self.student.clear()
        sums = self._gradient.put(windows, self.sequences)
        pace = self.span.rate(self.config, standing.step)
        length = windows.ids.shape[1]
        kl, ce = float(sums.kl) / (self.sequences * length), float(sums.ce) / (self.sequences * (length - 1))
        finite = math.isfinite(kl) and math.isfinite(ce)
        norm = self.optimizer.step(pace) if finite else math.nan
        row: dict[str, Any] = {"step": standing.step, "kl": kl, "loss": ce, "rate": pace, "norm": norm}
        if finite and math.isfinite(norm):
            standing.skipped = 0
        else:
            # JSON has no NaN.
            row |= {name: None for name, value in row.items() if not math.isfinite(value)} | {"skipped": True}
            self._skip()
        standing.updates = self.optimizer.updates
        standing.step += 1
        standing.tokens += windows.ids.numel()
        standing.steps.append(row)
        return row

    def _skip(self) -> None:
        self.standing.skipped += 1
        self.events.note(f"Step {self.standing.step} was not finite, so it was skipped.")
        if self.standing.skipped == _MOST_SKIPPED:
            raise Diverged(f"{_MOST_SKIPPED} steps in a row were not finite.")
