"""Filling the files of one text: from what is read, or from what the dense model writes."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from prunekit.data.calibration import check_tokens
from prunekit.data.chat_template import Chats
from prunekit.data.self_generated import Writer, written_chunks
from prunekit.data.sources import SELF, has_fields, is_dataset, pieces, source_name
from prunekit.data.tokenised import first_token, separators, tokenised
from prunekit.plan.settings import CalibrationConfig
from prunekit.plan.training import TextConfig
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.models.dense import DenseModel

OPTION = "--text"
STARTS = np.dtype("<i8")


def file_names(part: int) -> tuple[str, str]:
    """The files of a part's tokens and of where its documents begin."""
    return f"part-{part}.tokens", f"part-{part}.documents"


class PartFile:
    """Takes the tokens of one text as they come and writes whole windows of them, until it is ``full``."""

    def __init__(self, folder: Path, part: int, most: int, length: int, dtype: np.dtype[Any], first: int | None):
        self._paths = [folder / name for name in file_names(part)]
        self.most, self._length, self._dtype, self._first = most, length, dtype, first
        self.windows = self.documents = 0
        # Not yet written: tokens of a window that is not whole, and where documents begin, in all of the text.
        self._ids = np.empty(0, np.int64)
        self._starts = np.empty(0, np.int64)
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> PartFile:
        self._files = [path.open("wb") for path in self._paths]
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()

    @property
    def full(self) -> bool:
        return self.windows == self.most

    @property
    def tokens(self) -> int:
        """How many it was given, but for those of a full part."""
        return self.windows * self._length + len(self._ids)

    def add(self, ids: np.ndarray, starts: np.ndarray) -> None:
        """Go on with ``ids`` int64 [n], in which documents begin at ``starts``."""
        self._starts = np.unique(np.concatenate([self._starts, starts + self.tokens]))
        self._ids = np.concatenate([self._ids, ids])
        count = min(len(self._ids) // self._length, self.most - self.windows)
        rows = self._ids[: count * self._length].reshape(count, self._length).astype(self._dtype)
        if self._first is not None:
            rows[:, 0] = self._first
        self._ids = self._ids[count * self._length :].copy()
        self.windows += count
        done = int(np.searchsorted(self._starts, self.windows * self._length))
        self.documents += done
        written, self._starts = self._starts[:done], self._starts[done:].copy()
        for file, values in zip(self._files, (rows, written.astype(STARTS)), strict=True):
            file.write(values.tobytes())


def reading(source: str) -> str:
    """What the phase is called in which that text is read."""
    return f"reading {source_name(source)}"


def read_into(file: PartFile, source: str, config: TextConfig, tokenizer: Any, model: Any) -> dict[str, Any]:
    """Fill ``file`` from a text that is read. Returns what is told of how."""
    import torch

    chats = Chats(tokenizer)
    parts = pieces(source, field=config.field, split=config.split, render=chats)
    with progress(reading(source), file.most) as advance:
        for group in tokenised(parts, tokenizer):
            before = file.windows
            ids = np.fromiter(chain.from_iterable(piece.ids for piece in group), np.int64)
            check_tokens(torch.from_numpy(ids), model)
            places = np.cumsum([0, *(len(piece.ids) for piece in group)])[:-1]
            file.add(ids, places[[piece.begins for piece in group]])
            advance(file.windows - before)
            if file.full:
                break
    return {
        **({"field": config.field} if has_fields(source) else {}),
        **({"split": config.split} if is_dataset(source) else {}),
        **chats.describe(),
    }


def write_into(
    file: PartFile, config: TextConfig, tokenizer: Any, dense: DenseModel, writer: Writer | None
) -> dict[str, Any]:
    """Fill ``file`` from what the model writes."""
    before, after = separators(tokenizer)
    with closing(_chunks(file.most, config, tokenizer, dense, writer)) as chunks:
        for ids in chunks:
            check_tokens(ids, dense.source.config)
            file.add(ids.numpy().reshape(-1), _begins(ids.numpy(), before, after))
    return {} if writer is None else {"writer": writer.name}


def take_part(sequences: int, config: TextConfig, tokenizer: Any, dense: DenseModel, writer: Writer | None) -> None:
    """Write this rank's part of what :func:`write_into` puts into a file of so many windows on rank 0."""
    with closing(_chunks(sequences, config, tokenizer, dense, writer)) as chunks:
        for _ in chunks:
            pass


def _chunks(
    sequences: int, config: TextConfig, tokenizer: Any, dense: DenseModel, writer: Writer | None
) -> Generator[torch.Tensor, None, None]:
    asked = sampling(config, sequences)
    return written_chunks(dense, first_token(tokenizer), asked, writer=writer, option=OPTION)


def sampling(config: TextConfig, sequences: int) -> CalibrationConfig:
    """How training text is sampled. Calibration samples by its seed as it is, training by a number of 56 bits that is
    hashed from it: whatever both seeds are, the model isn't trained on the text that it was calibrated on."""
    digest = hashlib.sha256(f"training text:{config.seed}".encode()).digest()
    seed = int.from_bytes(digest[:7], "little")
    return CalibrationConfig(source=SELF, sequences=sequences, length=config.length, seed=seed)


def _begins(ids: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """Where documents begin in windows that a model wrote [n, length], as places in all of them: at each window's
    beginning, and by the separators."""
    begins = np.zeros(ids.shape, bool)
    begins[:, 0] = True
    if before:
        begins |= _found(ids, before)
    elif after:
        begins[:, len(after) :] |= _found(ids, after)[:, : -len(after)]
    return np.flatnonzero(begins)


def _found(ids: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Where ``wanted`` begins in each row, bool as ``ids``."""
    found = np.ones(ids.shape, bool)
    for place, token in enumerate(wanted):
        rest = max(0, ids.shape[1] - place)
        found[:, :rest] &= ids[:, place:] == token
        found[:, rest:] = False
    return found
