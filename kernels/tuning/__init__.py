"""Measuring every way to compute an op on this GPU."""
