"""The decode runtime: an optimised model, its KV cache, generation."""
