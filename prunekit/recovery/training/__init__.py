"""Training a pruned model back toward its dense one: what happens, step by step, until it is written."""
