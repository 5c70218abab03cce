"""Modules that hold packed weights and call the ops."""
