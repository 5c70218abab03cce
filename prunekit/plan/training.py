# STAND-IN
from dataclasses import dataclass

from prunekit.plan.knobs import knob


@dataclass(frozen=True)
class TextConfig:
    source: str = knob("builtin:0.5,self:0.5", "x", name="text")
    length: int = knob(512, "x", name="text_length")
    held_out: int = knob(16, "x", name="text_held_out")
    seed: int = 0
    field: str = knob("text", "x", name="text_field")
    split: str = knob("train", "x", name="text_split")
