"""Pruning and training in turns (Adapt-Accel): a little goes, what is left is trained, and a little more goes."""
