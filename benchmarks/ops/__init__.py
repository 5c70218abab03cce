"""Single ops: checks, workloads, baselines."""
