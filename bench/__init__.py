"""Measurements: the bare loop, the engine beside it, latency, the Python wing alone: ``python -m bench.NAME``."""
