"""What was measured of one model, and of several beside the one they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunekit.evaluation.perplexity import Evaluation
from prunekit.evaluation.verdict import BROKEN, Verdict, verdict

if TYPE_CHECKING:
    from prunekit.checkpoint.history import PastTraining
    from prunekit.evaluation.continuations import Example, GenerationQuality
    from prunekit.evaluation.tasks.task_types import TaskReport
    from prunekit.evaluation.worst import WorstExample


@dataclass(frozen=True)
class Measured:
    """What was measured of ``model``, and of ``baseline`` where there is one: loss on ``texts``, continuations of
    prompts from each text (``generation``, and the words of some, ``examples``, and of those after which it is farthest
    from the baseline, ``worst``), ``tasks``; None or empty where it was not asked for. ``parameters`` are stored ones,
    ``share_of_blocks`` those of the decoder blocks in parts of the baseline's (without one: of the model that it was
    pruned from, None where nobody said which). ``trainings`` are those that its plan tells of. ``origin`` says of what
    and on what all this was measured: fingerprints of both models, the SHA-256 of the model's plan and of the token ids
    of each text, machine and versions. Of a model whose outputs or weights are no numbers ``broken`` says what was
    seen, and nothing else is known."""

    model: str
    baseline: str | None
    dtype: str
    device: str
    parameters: int
    share_of_blocks: float | None
    trainings: tuple[PastTraining, ...] = ()
    texts: Evaluation | None = None
    generation: tuple[GenerationQuality, ...] = ()
    examples: tuple[Example, ...] = ()
    tasks: TaskReport | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    worst: tuple[WorstExample, ...] = ()
    broken: str | None = None

    @property
    def verdict(self) -> Verdict | None:
        """On its texts, beside the baseline."""
        return verdict(self.texts)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        nothing = {"model": self.model, "baseline": self.baseline, "dtype": self.dtype, "device": self.device}
        data = self.texts.to_dict() if self.texts else {**nothing, "results": []}
        if self.broken is not None:
            data["verdict"] = {"verdict": BROKEN, "why": self.broken, "loss_added": None}
        elif (found := self.verdict) is not None:
            data["verdict"] = found.to_dict()
        if self.origin:
            data["origin"] = dict(self.origin)
        if self.trainings:
            data["recovery"] = [each.to_dict() for each in self.trainings]
        if self.generation:
            data["generation"] = [each.to_dict() for each in self.generation]
        if self.examples:
            data["examples"] = [each.to_dict() for each in self.examples]
        if self.worst:
            data["worst"] = [each.to_dict() for each in self.worst]
        if self.tasks is not None:
            data["tasks"] = self.tasks.to_dict()
        return data


@dataclass(frozen=True)
class Comparison:
    """``models`` in the order in which they were named, all measured alike, beside one baseline, of which
    ``baseline_parameters`` are stored."""

    models: tuple[Measured, ...]
    baseline_parameters: int | None

    @property
    def baseline(self) -> str | None:
        return self.models[0].baseline

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "baseline": self.baseline,
            "baseline_parameters": self.baseline_parameters,
            "models": [
                {
                    **each.to_dict(),
                    "parameters": each.parameters,
                    "share_of_blocks": None if each.share_of_blocks is None else round(each.share_of_blocks, 6),
                }
                for each in self.models
            ],
        }
