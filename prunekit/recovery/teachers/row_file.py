"""Rows of bytes by name, in one file that grows: what was kept outlives a kill, and a full disk ends the keeping."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import rewrite_bytes

_ROWS, _INDEX = "rows.bin", "rows.safetensors"
_KEY = 16


class RowFile:
    """What lies in ``folder``, of the ``kind`` that its rows have: another kind's are thrown away. Rows that were added
    can be read at once, and by a later process from :meth:`flush` on.

    At least ``reserve`` bytes of the disk stay free. Where they would not, or a row can't be written, ``full`` is True
    from then on, ``note`` is told why, and nothing more is kept.
    """

    def __init__(self, folder: Path, kind: str, reserve: int = 0, note: Callable[[str], None] = lambda text: None):
        self._folder, self._kind, self._reserve, self._note = folder, kind, reserve, note
        self.full = False
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = self._safe = 0
        try:
            folder.mkdir(exist_ok=True)
            self._take_up()
        except OSError as error:
            self._stop(error)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, key: bytes) -> bytes | None:
        """The row of that name; None where there is none."""
        if key not in self._places:
            return None
        start, size = self._places[key]
        with (self._folder / _ROWS).open("rb") as file:
            file.seek(start)
            row = file.read(size)
        return row if len(row) == size else None

    def add(self, key: bytes, row: bytes) -> None:
        """Keep ``row`` under a name of 16 bytes."""
        if self.full or key in self._places:
            return
        try:
            if shutil.disk_usage(self._folder).free - len(row) < self._reserve:
                raise OSError("the disk is nearly full")
            with (self._folder / _ROWS).open("r+b") as file:
                file.seek(self._end)
                file.write(row)
        except OSError as error:
            self._stop(error)
            return
        self._places[key] = (self._end, len(row))
        self._end += len(row)

    def flush(self) -> None:
        """Make all rows safe: a process that goes on from here has them."""
        from safetensors.numpy import save

        if self._safe == len(self._places):
            return
        names = np.frombuffer(b"".join(self._places), np.uint8).reshape(-1, _KEY)
        sizes = np.array([size for _, size in self._places.values()], np.int64)
        try:
            # Rows first: the list never names one that is not there.
            with (self._folder / _ROWS).open("r+b") as file:
                os.fsync(file.fileno())
            rewrite_bytes(self._folder / _INDEX, save({"names": names, "sizes": sizes}, {"kind": self._kind}))
        except (OSError, PrunekitError) as error:
            self._stop(error)
            return
        self._safe = len(self._places)

    def _take_up(self) -> None:
        """Take up what an earlier process flushed, where it is whole, and forget what lies behind it."""
        from safetensors import SafetensorError, safe_open

        rows = self._folder / _ROWS
        rows.touch()
        try:
            with safe_open(self._folder / _INDEX, "np") as index:
                if (index.metadata() or {}).get("kind") != self._kind:
                    raise ValueError
                names, sizes = index.get_tensor("names"), index.get_tensor("sizes")
            if names.dtype != np.uint8 or names.shape != (len(sizes), _KEY) or sizes.min(initial=0) < 0:
                raise ValueError
            ends = np.cumsum(sizes)
            if len(sizes) and ends[-1] > rows.stat().st_size:
                raise ValueError
        except (FileNotFoundError, SafetensorError, ValueError):
            names, sizes, ends = (np.empty(0, np.int64) for _ in range(3))
        pairs = zip((ends - sizes).tolist(), sizes.tolist(), strict=True)
        self._places = dict(zip(map(bytes, names.astype(np.uint8)), pairs, strict=True))
        self._end, self._safe = int(sizes.sum()), len(self._places)
        os.truncate(rows, self._end)

    def _stop(self, error: Exception) -> None:
        self.full = True
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error).partition(". ")[0]
        self._note(
            f"No more of what the dense model says is kept ({why}); what is not there is computed again when it is "
            "needed, which takes longer and changes nothing else."
        )
