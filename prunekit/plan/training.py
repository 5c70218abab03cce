"""How a pruned model is trained back: settings that its record holds. Obeyed in prunekit.data and prunekit.recovery."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.plan.knobs import knob
from prunekit.plan.settings import check_text


@dataclass(frozen=True)
class TextConfig:
    """What text a pruned model is trained on: windows of ``length`` tokens, in an order drawn by ``seed``.

    ``source``, ``field`` and ``split`` are those of :class:`~prunekit.plan.settings.CalibrationConfig`. ``held_out``
    windows in all, at least one of each text of a mix, are never trained on: they judge how near the model has come.
    """

    source: str = knob(
        "builtin:0.5,self:0.5", "a file, a Hugging Face dataset, wikitext, builtin, self, or a mix", name="text"
    )
    length: int = knob(512, "tokens a window of training text", name="text_length")
    held_out: int = knob(16, "windows of training text that are only judged by", name="text_held_out")
    seed: int = 0
    field: str = knob("text", "the field or column of the rows that holds the text or the chat", name="text_field")
    split: str = knob("train", "the dataset's split", name="text_split")

    def __post_init__(self) -> None:
        check_text(self, "training", {"length": 2, "held_out": 1})
