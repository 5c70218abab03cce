"""Benchmarks of lm-evaluation-harness: their data, running them, and what is told of the scores."""
