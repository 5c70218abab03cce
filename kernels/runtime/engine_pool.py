"""The runtimes of one model, one a batch-size bucket: graphs are kept, the memory of the cache is shared."""

from __future__ import annotations

from typing import Any

from prunekit.kernels.runtime.engine import Runtime, bucket, decoder_of, rounded_capacity


class RuntimePool:
    """Runtimes of the buckets that were asked for, all over one arena: only the one last prefilled holds sequences.

    A bucket's runtime serves every request up to its capacity; a longer one makes another in its place. Where that
    needs more memory than the arena has, all runtimes go first.
    """

    def __init__(self) -> None:
        self._runtimes: dict[tuple[int, bool], Runtime] = {}
        # Who began last: the cache is theirs.
        self.turn = 0

    def get(self, model: Any, batch: int, max_length: int, cuda_graphs: bool) -> Runtime:
        """A runtime for ``batch`` sequences of up to ``max_length`` tokens, its graph recorded."""
        key = (bucket(batch), cuda_graphs)
        if key not in self._runtimes or self._runtimes[key].capacity < max_length:
            arena = next((runtime.cache.arena for runtime in self._runtimes.values()), None)
            needed = decoder_of(model).cache_elements(bucket(batch), rounded_capacity(max_length))
            if arena is not None and arena.numel() < needed:
                arena = None
                self._runtimes.clear()
            self._runtimes[key] = Runtime(model, batch, max_length, cuda_graphs=cuda_graphs, arena=arena)
        self._runtimes[key].record()
        return self._runtimes[key]
