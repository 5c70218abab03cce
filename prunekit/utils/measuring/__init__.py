"""Whether a measurement can be believed. Standard library only: bench.py of an export carries these files' text."""
