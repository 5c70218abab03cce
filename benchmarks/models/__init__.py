"""Whole models on a GPU, and the shapes that are measured."""
