"""Measurements, each with the proof that nothing was lost on the way: ``sharded-wf bench``, ``python -m bench``."""
