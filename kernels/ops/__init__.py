"""Triton kernels as ops, and the float64 reference of each."""
