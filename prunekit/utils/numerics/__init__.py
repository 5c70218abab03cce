"""Tensors without a model: finite, in the right precision, solved, drawn from."""
