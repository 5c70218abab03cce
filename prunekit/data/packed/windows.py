"""Windows of a packed text: an endless order that a seed decides, tokens mapped from the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunekit.data.packed.order import Turns, permutation
from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    import torch

# Orders of so many epochs are kept: a batch reads from two at most, unless its text is shorter than itself.
_EPOCHS_KEPT = 2


class Windows(NamedTuple):
    """Token ``ids`` int64 [n, length] without padding, and of each the number, from 0, of its document in the window,
    ``documents`` int64 [n, length]."""

    ids: torch.Tensor
    documents: torch.Tensor


@dataclass(frozen=True, eq=False)
class TextPart:
    """One text of the mix: ``ids`` [windows, length] and where its documents begin, ``starts`` [documents], both mapped
    from the disk. ``held_out`` of the windows are never trained on. ``read`` is what else is told of how it was read.
    """

    source: str
    share: float
    weight: int
    held_out: int
    sha256: str
    read: Mapping[str, Any]
    ids: np.ndarray = field(repr=False)
    starts: np.ndarray = field(repr=False)
    key: str = field(repr=False)

    @property
    def training(self) -> int:
        """How many windows an epoch has."""
        return len(self.ids) - self.held_out

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the windows that are held out lie, and the others."""
        order = permutation(len(self.ids), self.key, "held out")
        return np.sort(order[: self.held_out]), np.sort(order[self.held_out :])

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) >= _EPOCHS_KEPT:
                del self._orders[min(self._orders)]
            self._orders[epoch] = permutation(self.training, self.key, epoch)
        return self._orders[epoch]

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The windows of these numbers in this part's own endless order, as :class:`Windows` has them."""
        epochs, within = np.divmod(numbers, self.training)
        rows = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._places[1][self._order(int(epoch))[within[here]]]
        return self._read(rows)

    def judging(self) -> tuple[np.ndarray, np.ndarray]:
        """The windows that are held out."""
        return self._read(self._places[0])

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = self.ids.shape[1]
        places = rows[:, None] * length + np.arange(length)
        documents = np.searchsorted(self.starts, places, "right")
        return self.ids[rows].astype(np.int64), documents - documents[:, :1]

    def describe(self) -> dict[str, Any]:
        """Provenance of this text."""
        return {
            "source": self.source,
            "share": self.share,
            **self.read,
            "tokens": self.ids.size,
            "windows": len(self.ids),
            "held_out": self.held_out,
            "documents": len(self.starts),
            "sha256": self.sha256,
        }


@dataclass(frozen=True, eq=False)
class PackedText:
    """A text that was packed into windows of ``length`` tokens: :func:`prunekit.data.token_file.pack_text`.

    Its order has no state: whoever knows which window comes next goes on exactly, on any number of processes.
    ``vocabulary`` is that of the model it was packed for.
    """

    folder: Path
    length: int
    vocabulary: int
    seed: int
    parts: tuple[TextPart, ...]
    fingerprint: str
    """Of the windows and their order, hex SHA-256."""

    @cached_property
    def _turns(self) -> Turns:
        return Turns([part.weight for part in self.parts])

    def batch(self, first: int, count: int) -> Windows:
        """Windows number ``first`` to ``first + count - 1`` of the endless order.

        Of any first j windows each part has given its share, to less than one window. A part goes through all its
        windows, in an order of its own for each epoch, before one comes again.
        """
        if first < 0 or count < 1:
            raise PrunekitError(f"Windows count from 0 and a batch has at least 1, got {count} from {first}.")
        parts, numbers = self._turns.of(np.arange(first, first + count, dtype=np.int64))
        ids, documents = (np.empty((count, self.length), np.int64) for _ in range(2))
        for index, part in enumerate(self.parts):
            here = np.flatnonzero(parts == index)
            if len(here):
                ids[here], documents[here] = part.windows(numbers[here])
        return _windows(ids, documents)

    @cached_property
    def held_out(self) -> Windows:
        """The windows that :meth:`batch` never gives, those of each part in turn."""
        ids, documents = zip(*(part.judging() for part in self.parts), strict=True)
        return _windows(np.concatenate(ids), np.concatenate(documents))

    def epochs(self, tokens: int) -> tuple[float, ...]:
        """How often ``tokens`` of training go through each part."""
        counts = self._turns.counts(-(-tokens // self.length))
        return tuple(count / part.training for count, part in zip(counts, self.parts, strict=True))

    def describe(self) -> dict[str, Any]:
        """Provenance: JSON values only, and no path."""
        mix = ",".join(f"{part.source}:{part.share:g}" for part in self.parts)
        return {
            "source": mix if len(self.parts) > 1 else self.parts[0].source,
            "tokens": sum(part.ids.size for part in self.parts),
            "length": self.length,
            "held_out": sum(part.held_out for part in self.parts),
            "seed": self.seed,
            "parts": [part.describe() for part in self.parts],
            "fingerprint": self.fingerprint,
        }


def _windows(ids: np.ndarray, documents: np.ndarray) -> Windows:
    import torch

    return Windows(torch.from_numpy(ids), torch.from_numpy(documents))
