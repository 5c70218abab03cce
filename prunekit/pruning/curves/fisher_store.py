"""Fisher sums that are kept while they are taken, so that a run that was ended goes on. Curves need them no more once
every layer has its own: then they go, for those of an 8B model take 4 GB."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from prunekit.models.sublayers import KINDS
from prunekit.plan.shape import Kind
from prunekit.utils.files.kept_tensors import read_kept_tensors, write_kept_tensors

# What is kept is at most so many seconds old, and writing takes at most this share of the time.
_EVERY = 10.0
_SHARE = 0.05
_NAME = re.compile(r"fisher-(\d+)-(\d+)\.safetensors")


@dataclass(frozen=True)
class FisherSums:
    """``sums`` over the first ``sequences`` of the text, float32 [d, d] on the CPU; ``state`` is that of the generator
    that draws labels."""

    sequences: int
    sums: dict[tuple[int, Kind], torch.Tensor]
    state: torch.Tensor


@dataclass
class FisherStore:
    """Keeps sums for a model of ``layers`` in ``folder``, a file a layer; None keeps nothing."""

    folder: Path | None
    layers: int

    def __post_init__(self) -> None:
        self._kept_at, self._took = time.monotonic(), 0.0

    def read(self, most: int) -> FisherSums | None:
        """The sums over the most sequences, ``most`` at most; None where there are none as they were written."""
        counts = {count for count, _ in self._files() if count <= most}
        return next((found for count in sorted(counts, reverse=True) if (found := self._read(count))), None)

    def keep(self, sequences: int, sums: dict[tuple[int, Kind], torch.Tensor], state: torch.Tensor) -> bool:
        """Keep these, called as in :class:`FisherSums`, in place of earlier ones, if those have become old. Returns
        whether that was done."""
        started = time.monotonic()
        if self.folder is None or started - self._kept_at < max(_EVERY, self._took / _SHARE):
            return False
        for index in range(self.layers):
            own = {str(kind): sums[index, kind] for kind in KINDS if (index, kind) in sums}
            write_kept_tensors(self._file(sequences, index), {**own, "state": state})
        if whole := all(self._file(sequences, index).is_file() for index in range(self.layers)):
            self._remove(but=sequences)
        self._kept_at = time.monotonic()
        self._took = self._kept_at - started
        return whole

    def forget(self) -> None:
        """Take away what is kept."""
        self._remove(but=None)

    def _read(self, sequences: int) -> FisherSums | None:
        sums: dict[tuple[int, Kind], torch.Tensor] = {}
        state: torch.Tensor | None = None
        for index in range(self.layers):
            found = read_kept_tensors(self._file(sequences, index))
            if found is None or "state" not in found:
                return None
            state = found["state"]
            sums |= {(index, kind): found[kind] for kind in KINDS if kind in found}
        return None if state is None else FisherSums(sequences, sums, state)

    def _file(self, sequences: int, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"fisher-{sequences}-{index}.safetensors"

    def _files(self) -> dict[tuple[int, int], Path]:
        """By sequences and layer."""
        if self.folder is None or not self.folder.is_dir():
            return {}
        named = ((_NAME.fullmatch(file.name), file) for file in self.folder.iterdir())
        return {(int(name[1]), int(name[2])): file for name, file in named if name}

    def _remove(self, but: int | None) -> None:
        for (sequences, _), file in self._files().items():
            if sequences != but:
                with suppress(OSError):
                    file.unlink()
