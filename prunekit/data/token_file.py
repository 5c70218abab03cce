"""The text that a pruned model is trained on, as a folder of tokens: packed once, then read by the window."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunekit.data.calibration import check_length
from prunekit.data.mixture import parse_mix, split
from prunekit.data.packed.filling import (
    OPTION,
    STARTS,
    PartFile,
    file_names,
    read_into,
    reading,
    sampling,
    take_part,
    write_into,
)
from prunekit.data.packed.order import MOST_WEIGHT, Turns, weights_of
from prunekit.data.packed.windows import PackedText, TextPart
from prunekit.data.self_generated import Writer, unwritten
from prunekit.data.sources import SELF, source_name
from prunekit.data.tokenised import bos
from prunekit.errors import PrunekitError
from prunekit.plan.training import TextConfig
from prunekit.utils.files.atomic import new_folder, read_json
from prunekit.utils.files.hashes import digests
from prunekit.utils.files.listed_folder import check_listed
from prunekit.utils.names import printable
from prunekit.utils.phases.titles import OWN_TEXT
from prunekit.utils.process.ranks import barrier, is_first

if TYPE_CHECKING:
    from prunekit.models.dense import DenseModel

MANIFEST = "text.json"
_FORMAT, _VERSION = "prunekit-text", 1
_DTYPES: Mapping[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# Of a text that is shorter than was asked for, one window in so many is held out at most.
_ONE_IN = 4


class Expected(NamedTuple):
    """What the dense model has still to write: ``tokens``, in so many ``chunks``."""

    tokens: int
    chunks: int


class _Share(NamedTuple):
    """What a text of the mix is to hold, in windows."""

    source: str
    share: float
    weight: int
    training: int
    held_out: int

    @property
    def windows(self) -> int:
        return self.training + self.held_out


def pack_text(
    folder: Path, config: TextConfig, tokens: int, tokenizer: Any, dense: DenseModel, *, writer: Writer | None = None
) -> PackedText:
    """Pack ``config.source`` into ``folder``, a new one, for a training that will see ``tokens`` tokens.

    Documents are packed as :func:`prunekit.data.tokenised.tokenised` does it, into windows of ``config.length`` tokens
    without padding; where the tokenizer starts every text with BOS, so does every window. Each text is read until it
    holds its share and what is held out of it, or to its end: one that is shorter comes again in later epochs, and at
    most a quarter of it is held out. What the ``dense`` model writes (``writer`` in its place, where one is given) goes
    to the cache chunk by chunk, so that a run that was stopped goes on there. ``folder`` appears when it is complete.
    Several ranks sample together, and the first one packs.

    Raises PrunekitError where a text can't be read, is too short for two windows, or does not fit the model.
    """
    model = dense.source.config
    check_length(config, model)
    shares = _shares(config, tokens)
    if not is_first():
        for share in shares:
            if share.source == SELF:
                take_part(share.windows, config, tokenizer, dense, writer)
        barrier()
        return open_text(folder)
    dtype = "uint16" if model.vocab_size <= 1 << 16 else "uint32"
    parts: dict[int, dict[str, Any]] = {}
    with new_folder(folder) as made:
        # What the model writes takes longest: a text that can't be read is refused before.
        for index in sorted(range(len(shares)), key=lambda index: shares[index].source == SELF):
            share = shares[index]
            with PartFile(made, index, share.windows, config.length, _DTYPES[dtype], bos(tokenizer)) as file:
                if share.source == SELF:
                    read = write_into(file, config, tokenizer, dense, writer)
                else:
                    read = read_into(file, share.source, config, tokenizer, model)
            parts[index] = _described(share, file, config.length, read)
        said = {
            "format": _FORMAT,
            "version": _VERSION,
            "dtype": dtype,
            "vocabulary": model.vocab_size,
            "length": config.length,
            "seed": config.seed,
            "parts": [parts[index] for index in range(len(shares))],
            "files": digests(made),
        }
        said["fingerprint"] = _fingerprint(said)
        (made / MANIFEST).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    barrier()
    return open_text(folder)


def packing_phases(source: str) -> tuple[str, ...]:
    """The phases of :func:`pack_text`: what the model writes comes last."""
    names = [name for name, _ in parse_mix(source, OPTION)]
    return (*(reading(name) for name in names if name != SELF), *([OWN_TEXT] if SELF in names else []))


def expected(config: TextConfig, tokens: int, dense: DenseModel, *, writer: Writer | None = None) -> Expected:
    """What :func:`pack_text` will have the model write, apart from what the cache holds already."""
    sequences = sum(share.windows for share in _shares(config, tokens) if share.source == SELF)
    sizes = unwritten(dense, sampling(config, sequences), writer=writer) if sequences else []
    return Expected(sum(sizes) * config.length, len(sizes))


def _shares(config: TextConfig, tokens: int) -> list[_Share]:
    if tokens < 1:
        raise PrunekitError(f"A training sees at least 1 token, got {tokens}.")
    sources, given = zip(*parse_mix(config.source, OPTION), strict=True)
    weights = weights_of(given)
    shares = [weight / sum(weights) for weight in weights]
    held_out = split(config.held_out, shares, "training texts", "windows held out")
    training = [max(1, count) for count in Turns(weights).counts(-(-tokens // config.length))]
    return [_Share(*each) for each in zip(sources, shares, weights, training, held_out, strict=True)]


def _described(share: _Share, file: PartFile, length: int, read: Mapping[str, Any]) -> dict[str, Any]:
    """A part as text.json has it. Raises PrunekitError where it is too short."""
    name = source_name(share.source)
    if file.windows < 2:
        shorter = f"choose a length of at most {file.tokens // 2}, or " if file.tokens >= 4 else ""
        raise PrunekitError(
            f"The training text {name} holds {file.tokens:,} tokens, and one window of {length} to train on and one to "
            f"judge by need {2 * length:,}; {shorter}give more text."
        )
    return {
        "source": printable(name),
        "share": share.share,
        "weight": share.weight,
        "tokens": file.windows * length,
        "windows": file.windows,
        "held_out": share.held_out if file.full else min(share.held_out, max(1, file.windows // _ONE_IN)),
        "documents": file.documents,
        "read": read,
    }


def _fingerprint(said: Mapping[str, Any]) -> str:
    """Hex SHA-256 of what text.json says beside it, which decides the windows and their order."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def open_text(folder: Path) -> PackedText:
    """The text that was packed into ``folder``. Every byte is compared with its hash; then tokens stay on the disk
    until they are asked for.

    Raises PrunekitError where it is missing, damaged, or of another version.
    """
    said = read_json(folder / MANIFEST, "training text")
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise PrunekitError(
            f"{folder / MANIFEST} is no training text that prunekit packed; delete {folder} to pack it again."
        )
    if said.get("version") != _VERSION:
        raise PrunekitError(
            f"The training text in {folder} was packed by another version of prunekit ({said.get('version')!r}, where "
            f"this one reads {_VERSION}); delete that folder, and the same command packs the text again."
        )
    fingerprint = said.pop("fingerprint", None)
    try:
        if fingerprint != _fingerprint(said):
            raise ValueError
        check_listed(folder, said["files"], MANIFEST)
        parts = tuple(_part(folder, said, index) for index in range(len(said["parts"])))
        if not parts or sum(part.weight for part in parts) > MOST_WEIGHT:
            raise ValueError
        return PackedText(folder, said["length"], said["vocabulary"], said["seed"], parts, fingerprint)
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        raise PrunekitError(
            f"The training text in {folder} is damaged: {MANIFEST} is not what was written with the other files. Pack "
            "it again."
        ) from None


def _part(folder: Path, said: Mapping[str, Any], index: int) -> TextPart:
    part = said["parts"][index]
    tokens, documents = file_names(index)
    ids = _mapped(folder / tokens, _DTYPES[said["dtype"]], (part["windows"], said["length"]))
    starts = _mapped(folder / documents, STARTS, (part["documents"],))
    if not 0 < part["held_out"] < len(ids) or part["weight"] < 1:
        raise ValueError
    facts = (part["source"], part["share"], part["weight"], part["held_out"], said["files"][tokens], part["read"])
    return TextPart(*facts, ids, starts, f"{said['seed']}:{index}")


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    if path.stat().st_size != math.prod(shape) * dtype.itemsize:
        raise ValueError
    return np.memmap(path, dtype, "r", shape=shape)
