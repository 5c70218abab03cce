"""Giving back what pruning lost."""
