"""Tolerances, and kernels compiled for GPUs that are not there."""
