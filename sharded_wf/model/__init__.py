"""Frozen values that both wings share, and the legal state changes. Nothing here does I/O."""
