"""Requests of a load test with times that are given."""

from __future__ import annotations

from prunekit.profiling.server.load import Shot
from prunekit.utils.endpoints.answer import Answer, Usage


def shot(ttft: float, tpot: float = 0.01, tokens: int = 5, error: str | None = None, late: float = 0.0) -> Shot:
    """A request that was to be sent at 0 and was sent ``late``; its times count from 0."""
    end = ttft + tpot * (tokens - 1)
    made = Answer("x", late, end, error, "", ttft, (ttft, end), "w", usage=Usage(4, tokens), finish_reason="stop")
    return Shot(0.0, made, tokens, 4)
