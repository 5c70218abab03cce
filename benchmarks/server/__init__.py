"""Pruned models in a real server."""
