"""The text that a model is calibrated and trained on."""
