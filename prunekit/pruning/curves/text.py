"""The calibration text that loss curves are drawn on, and their scale is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from prunekit.plan.allocations import OptimalConfig

# Of fewer sequences, their spread says too little to tell one text of a mix from another.
OF_EACH_TEXT = 4


def scale_sequences(drawing: OptimalConfig, length: int, texts: int = 1) -> int:
    """How many sequences of ``length`` tokens the scale of loss curves is measured on, of a mix of so many ``texts``.
    One sequence alone would say too little, however long."""
    return max(2, -(-drawing.scale_tokens // length), OF_EACH_TEXT * texts if texts > 1 else 0)


def evenly(rows: Sequence[int], sources: Sequence[str], count: int) -> list[int]:
    """The first of ``rows``, ``count`` in all or as many as there are, the texts that ``sources`` names by row taking
    turns. In rising order."""
    queues: dict[str, list[int]] = {}
    for row in rows:
        queues.setdefault(sources[row] if sources else "", []).append(row)
    taken: list[int] = []
    for turn in zip_longest(*queues.values()):
        taken += [row for row in turn if row is not None]
    return sorted(taken[:count])


@dataclass(frozen=True)
class CurveText:
    """Token ids ``ids``, int64 [sequences, length], of which ``drawing`` says how many are read for what. ``sources``
    names the text of each sequence (none: they are all of one)."""

    ids: torch.Tensor
    drawing: OptimalConfig
    sources: Sequence[str] = ()

    @property
    def drawn_on(self) -> torch.Tensor:
        """The sequences that curves are drawn on."""
        return self.ids[: self._sequences(self.drawing.curve_tokens)]

    @property
    def fisher(self) -> torch.Tensor:
        """Those of them that Fisher information is measured on."""
        return self.drawn_on[: self._sequences(self.drawing.fisher_tokens)]

    @property
    def scale_sequences(self) -> int:
        """How many sequences the scale is measured on, where there are so many."""
        return scale_sequences(self.drawing, self.ids.shape[1], len(set(self.sources)))

    def scale_rows(self) -> list[int]:
        """The places of those sequences: where there is enough text, such as curves were not drawn on; of a mix as many
        of each text, where there are so many."""
        count = self.scale_sequences
        # What was solved errs less on the text it was solved on than elsewhere, and not everywhere by as much.
        seen = len(self.drawn_on)
        rows = range(seen, len(self.ids)) if len(self.ids) - seen >= count else range(len(self.ids))
        return evenly(rows, self.sources, count)

    def _sequences(self, tokens: int) -> int:
        return -(-tokens // self.ids.shape[1])
