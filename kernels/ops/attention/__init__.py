"""Attention, rotary embeddings and the KV cache."""
