"""Weights read from a checkpoint's files one at a time, by plain reads: pages of a mapped file would stay in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from prunekit.errors import PrunekitError
from prunekit.models.folder import StoredTensor, read_tensors
from prunekit.models.source import Source
from prunekit.models.stored_weights import HEAD
from prunekit.utils.numerics.finite import check_weight

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}


class Weights(Protocol):
    """A model's weights by the names that transformers gives them (``model.layers.0.mlp.down_proj.weight``)."""

    def names(self) -> Iterator[str]: ...

    def read(self, name: str) -> torch.Tensor:
        """The weight ``name``."""
        ...

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Its rows from ``start`` up to ``stop``."""
        ...


class StoredWeights:
    """The weights of ``source`` as its files hold them, each checked to be finite. Raises PrunekitError where one is
    not, or a file can't be read."""

    def __init__(self, source: Source):
        stored = read_tensors(source.path)
        # A decoder that was saved without its head leaves the prefix out.
        prefix = "" if any(name.startswith("model.") for name in stored) else "model."
        self._stored = {name if name == HEAD else prefix + name: each for name, each in stored.items()}

    def names(self) -> Iterator[str]:
        return iter(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight ``name``, which is not read."""
        return self._stored[name].shape

    def read(self, name: str) -> torch.Tensor:
        stored = self._stored[name]
        return self._read(name, stored, 0, stored.shape)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        stored = self._stored[name]
        stop = min(stop, stored.shape[0])
        row = stored.nbytes // stored.shape[0]
        return self._read(name, stored, start * row, (stop - start, *stored.shape[1:]))

    def _read(self, name: str, stored: StoredTensor, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
        made = torch.empty(shape, dtype=_DTYPES[stored.dtype])
        if made.numel():
            room: Any = made.view(-1).view(torch.uint8).numpy()
            try:
                with stored.file.open("rb") as handle:
                    handle.seek(stored.start + offset)
                    read = handle.readinto(room)
            except OSError as error:
                raise PrunekitError(f"{stored.file} can't be read: {error.strerror or error}.") from None
            if read != len(room):
                raise PrunekitError(f"{stored.file} got shorter while it was read; run the command again.")
        check_weight(name, made)
        return made


class Replaced:
    """``weights`` with those of ``others`` in the place of their own, as a rounded file holds them."""

    def __init__(self, weights: Weights, others: Mapping[str, torch.Tensor]):
        self._weights, self._others = weights, others
        # Getting one may mean to compute it, and so may asking a mapping whether it has one.
        self._replaced = frozenset(others)
        self._last: tuple[str, torch.Tensor] | None = None

    def names(self) -> Iterator[str]:
        return self._weights.names()

    def read(self, name: str) -> torch.Tensor:
        return self._others[name] if name in self._replaced else self._weights.read(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name not in self._replaced:
            return self._weights.rows(name, start, stop)
        # Rows are asked for one stretch after the other.
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = (name, self._others[name])
        return self._last[1][start:stop]
