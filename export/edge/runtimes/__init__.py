"""How bench.py runs an export, one file a target: each needs that runtime and numpy alone, and never prunekit."""
