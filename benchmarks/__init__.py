"""Measurements: the GPU check and the pytest-benchmark suites."""
