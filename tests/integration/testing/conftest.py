"""The engine's clusters, for the testing kit's tests."""

from __future__ import annotations

from tests.integration.engine.conftest import make_cluster

__all__ = ["make_cluster"]
