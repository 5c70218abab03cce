"""Triton kernels and their PyTorch references; imported as ``prunekit.kernels``."""
