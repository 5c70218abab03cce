"""Files, child processes, signals, text for a terminal: what knows no model."""
