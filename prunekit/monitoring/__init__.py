"""Whether a smaller model is still good a month later: request logs, signals, verdicts, alarms."""
