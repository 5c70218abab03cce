"""This process and its children: signals, limits, where code is imported from."""
