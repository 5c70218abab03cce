"""What a model loses with a whole attention or FFN: measured, and kept as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prunekit.plan.shape import Kind
from prunekit.pruning.curves.curve_store import CurveStore, Removed
from prunekit.utils.advance import Advance
from prunekit.utils.phases.titles import WHOLE
from prunekit.utils.process import ranks
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.pruning.curves.divergence import Divergence


def measure_whole(
    kinds: Sequence[Kind],
    removed: list[Removed],
    store: CurveStore,
    divergence: Callable[[], Divergence],
    advance: Advance,
    title: str = WHOLE,
) -> None:
    """Put what each layer loses without a whole sub-layer of ``kinds`` into ``removed``, where it is missing."""
    deep = len(removed)
    places = [(index, kind) for index in range(deep) for kind in kinds]
    missing = [(index, kind) for index, kind in places if kind not in removed[index]]
    # A pass begins at the layer that is changed.
    work = {"": float(sum(deep - index for index, _ in places))}
    with progress(title, len(places), work=work, kept_in=store.folder) as step:
        for index, kind in places:
            if (index, kind) not in missing:
                step(cost=deep - index, kept=True)
        advance(len(places) - len(missing))
        for some in ranks.rounds(missing):
            found = [divergence().of(index, kind, None) for index, kind in ranks.share_of(some)]
            for (index, kind), loss in zip(some, ranks.in_order(found, len(some)), strict=True):
                removed[index][kind] = loss
                store.keep_removed(index, removed[index])
                step(cost=deep - index)
                advance()
