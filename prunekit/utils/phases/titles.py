"""What phases are called that several commands have: a phase is known by its title."""

from __future__ import annotations

READING = "reading text"
OWN_TEXT = "own text"
SCORING = "scoring"
FISHER = "Fisher information"
CURVES = "loss curves"
WHOLE = "whole sub-layers"
WIDTHS = "widths"
REFIT = "refit"
RESCALING = "rescaling"
BIASES = "biases"
TURNING = "turning"
WRITING = "cutting and writing"
CHECK = "check"
TRIAL = "trial steps"
TRAINING = "training"


def of_round(title: str, number: int) -> str:
    """``title`` in the round of that ``number``, where what it names is done in several."""
    return title if number == 1 else f"{title}, round {number}"
