"""The trainings that a plan's provenance tells of, for whoever shows a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.plan import Plan


@dataclass(frozen=True)
class PastTraining:
    """One `prunekit recover`: ``tokens`` of ``text`` toward the dense model ``teacher``. ``before`` and ``after`` are
    the divergence from it in nats a token on text that was not trained on; with ``used`` False no step had a lower
    loss there, and the weights are those that were given. ``unfinished`` says how far it is where this is a checkpoint
    of it. None where nobody said."""

    tokens: int
    teacher: str | None
    text: str | None
    before: float | None
    after: float | None
    used: bool
    unfinished: str | None = None

    def words(self) -> str:
        """All of it in one clause."""
        said = f"{self.tokens:,} tokens" + (f" of {self.text}" if self.text else "")
        said += f" toward {self.teacher}" if self.teacher else ""
        if self.unfinished:
            return f"{said} so far ({self.unfinished})"
        if not self.used:
            return f"{said}; no step had a lower loss on held-out text, so the weights are those from before"
        if self.before is None or self.after is None:
            return said
        return f"{said}; KL on held-out text {self.before:.4f} before, {self.after:.4f} after"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as provenance calls them."""
        return {
            "tokens": self.tokens,
            "teacher": self.teacher,
            "text": self.text,
            "held_out_kl": {"before": self.before, "after": self.after},
            "used": self.used,
            **({"unfinished": self.unfinished} if self.unfinished else {}),
        }


def trainings(plan: Plan) -> tuple[PastTraining, ...]:
    """In the order in which they were done."""
    made = []
    for told in plan.provenance.get("recovery") or ():
        teacher, text, kl = (told.get(name) or {} for name in ("teacher", "text", "held_out_kl"))
        made.append(
            PastTraining(
                tokens=told.get("tokens", 0),
                teacher=teacher.get("name"),
                text=text.get("source"),
                before=kl.get("before"),
                after=kl.get("after"),
                used=told.get("used_step") != 0,
                unfinished=f"step {told.get('step')} of {told.get('steps')}" if told.get("unfinished") else None,
            )
        )
    return tuple(made)
