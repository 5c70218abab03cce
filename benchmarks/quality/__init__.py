"""How good pruned models are, by method, and how the time to prune grows."""
