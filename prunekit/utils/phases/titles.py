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
