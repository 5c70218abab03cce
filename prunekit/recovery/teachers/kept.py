"""What the dense model says of each window, written down when the window is first seen and read the next time."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Protocol

from prunekit.recovery.teachers.online import OnlineTeacher
from prunekit.recovery.teachers.row_file import RowFile
from prunekit.recovery.training.distance import Target, WindowTargets

if TYPE_CHECKING:
    import torch

    from prunekit.data.packed.windows import Windows


class Form(Protocol):
    """How what the dense model says is written down."""

    def pack(self, key: bytes, hidden: torch.Tensor) -> bytes:
        """The final hidden states [L, hidden_size] of the window of that name, or what they lead to. The same for the
        same arguments."""

    def target(self, rows: Sequence[bytes]) -> Target:
        """What the rows of as many windows tell."""


class KeptTeacher:
    """The ``online`` model; what it says of windows whose names are in ``again``, which come more than once, is written
    down in its ``form`` and kept in ``rows``. It goes by what was written the first time too, and by the same where it
    could not be kept, so that a window's target stays the same."""

    def __init__(self, online: OnlineTeacher, form: Form, rows: RowFile, again: Container[bytes]):
        self._online, self._form, self._rows, self._again = online, form, rows, again

    def target(self, windows: Windows) -> Target:
        keys = self._online.keys(windows)
        again = [place for place, key in enumerate(keys) if key in self._again]
        if not again:
            return self._online.target(windows)
        # Apart from the others: with what a window is computed together decides its last bits.
        kept = self._form.target(self._read(_part(windows, again), [keys[place] for place in again]))
        if len(again) == len(keys):
            return kept
        once = [place for place in range(len(keys)) if place not in again]
        places = {window: (kept, place) for place, window in enumerate(again)}
        others = self._online.target(_part(windows, once))
        places |= {window: (others, place) for place, window in enumerate(once)}
        return WindowTargets(windows.ids.shape[1], [places[window] for window in range(len(keys))])

    def _read(self, windows: Windows, keys: Sequence[bytes]) -> list[bytes]:
        rows = [self._rows.read(key) for key in keys]
        if any(row is None for row in rows):
            made = self._online.hidden(windows)
            for place, key in enumerate(keys):
                if rows[place] is None:
                    rows[place] = row = self._form.pack(key, made[place])
                    # What is not finite may be the machine's fault, and another one may do better.
                    if made[place].isfinite().all():
                        self._rows.add(key, row)
        return [row for row in rows if row is not None]


def _part(windows: Windows, places: Sequence[int]) -> Windows:
    return type(windows)(windows.ids[places], windows.documents[places])
