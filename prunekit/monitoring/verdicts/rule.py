"""The rule of the verdict: which signals are up decides what should be done.

Other prompts alone are no fault of the model: a notice. Other prompts and a model that follows the dense one less well
on them: prune anew with recent text. Worse answers to the same prompts, what no prompt can cause, or a model of other
weights: something is wrong, so investigate. Slower answers alone are as often more traffic: a notice. More bad answers
than the bound allows: the dense model, now. A signal that only warns changes no other verdict than "ok".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "notice", "re-prune", "investigate", "fall back to dense now"]
SEVERITY: dict[str, int] = {"ok": 0, "notice": 1, "re-prune": 2, "investigate": 3, "fall back to dense now": 4}

DO: dict[str, str] = {
    "ok": "Nothing to do.",
    "notice": "Look at what is asked now. If it is here to stay, collect recent text, and make the baseline again "
    "with `prunekit watch init`.",
    "re-prune": "Prune again with recent text (`prunekit prune --calib`), and put the new model into service only "
    "after it was compared with the dense one.",
    "investigate": "Compare the served weights, the server's options and the chat template with those of the release: "
    "the cause is not in the prompts.",
    "fall back to dense now": "Send requests to the dense model until the cause is found.",
}
# Of a notice that says only that the server is slower.
SLOWER = (
    "Look at the server: more requests at a time, other programs, other options. Answers and prompts are as they were, "
    "so the model is hardly the cause."
)
# Of a notice that says only what can't be seen any more.
BLIND = (
    "What has no figure is not watched. Compare the lines of the log with those that the baseline was made of, and see "
    "that the models can be reached."
)


@dataclass(frozen=True)
class Up:
    """A signal whose alarm is active; ``decides`` is False for one that only warns. ``sentence`` says what it saw.
    ``alone``: it was up while prompts were as before, so that prompts which changed later don't explain it."""

    name: str
    kind: str
    decides: bool
    sentence: str
    alone: bool = False


@dataclass(frozen=True)
class Judged:
    """A verdict with its ``reasons`` and what to ``do``, in sentences."""

    verdict: Verdict
    reasons: tuple[str, ...]
    do: str

    @property
    def alarm(self) -> bool:
        """Whether somebody must act."""
        return SEVERITY[self.verdict] >= SEVERITY["re-prune"]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def judge(up: Sequence[Up], over: Sequence[str] = (), blind: Sequence[str] = ()) -> Judged:
    """The verdict on the signals that are ``up``; ``over`` holds a sentence for each bound that was passed, ``blind``
    one for each thing that the log does not tell any more."""
    reasons = (*over, *(each.sentence for each in up), *blind)
    deciding = [each for each in up if each.decides]
    kinds = {each.kind for each in deciding}
    other_prompts = "input" in kinds
    verdict: Verdict
    if over:
        verdict = "fall back to dense now"
    elif any(_is_unexplained(each, other_prompts) for each in deciding):
        verdict = "investigate"
    elif "quality" in kinds:
        verdict = "re-prune" if other_prompts else "investigate"
    elif up or blind:
        verdict = "notice"
    else:
        verdict = "ok"
    if verdict == "notice" and not up:
        return Judged(verdict, reasons, BLIND)
    if verdict == "notice" and {each.kind for each in up} == {"load"} and not blind:
        return Judged(verdict, reasons, SLOWER)
    if verdict == "notice" and not kinds:
        reasons = (*reasons, "These signals are uncalibrated: they warn only.")
    return Judged(verdict, reasons or ("All signals are within their limits.",), DO[verdict])


def _is_unexplained(signal: Up, other_prompts: bool) -> bool:
    """Whether prompts can't be the cause: by what the signal is, or since it was up before they changed."""
    return signal.kind in ("weights", "server") or (signal.kind == "output" and (signal.alone or not other_prompts))
