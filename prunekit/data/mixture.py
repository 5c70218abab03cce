"""Text of several sources: ``notes.txt:0.5,self:0.5``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import Calibration, CalibrationConfig, load_calibration
from prunekit.data.self_generated import self_written
from prunekit.data.sources import SELF, has_fields, source_name
from prunekit.data.tokenised import bos, first_token
from prunekit.errors import PrunekitError
from prunekit.utils.phases.titles import OWN_TEXT, READING
from prunekit.utils.process.ranks import from_first
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.models.dense import DenseModel

_WEIGHTED = re.compile(r"(.+):(0?\.\d+|1(?:\.0*)?|0)")


def parse_mix(source: str, option: str = "--calib") -> tuple[tuple[str, float], ...]:
    """Sources and their shares, which add up to 1: without numbers all alike. A file whose name holds a comma is a
    file. Raises PrunekitError, which names the ``option``, where shares are missing or don't add up."""
    if Path(source).is_file():
        return ((source, 1.0),)
    names, shares = [], []
    for part in source.split(","):
        weighted = _WEIGHTED.fullmatch(part.strip())
        names.append(weighted[1] if weighted else part.strip())
        shares.append(float(weighted[2]) if weighted else None)
    if not all(names) or len(set(names)) != len(names):
        raise PrunekitError(
            f"{option} {source!r} names a text twice, or none; name each once, such as a.txt:0.5,self:0.5."
        )
    if all(share is None for share in shares):
        return tuple((name, 1 / len(names)) for name in names)
    given = [share for share in shares if share is not None]
    if len(given) < len(shares) or abs(sum(given) - 1) > 1e-3 or min(given) <= 0:
        raise PrunekitError(
            f"The shares in {option} {source!r} must be above 0 and add up to 1, such as a.txt:0.5,self:0.5."
        )
    return tuple(zip(names, given, strict=True))


@dataclass(frozen=True, eq=False)
class Mixed:
    """Blocks of several calibrations, each with its share of ``config.sequences``; used as a Calibration is."""

    config: CalibrationConfig
    parts: tuple[Calibration, ...]

    @property
    def blocks(self) -> torch.Tensor:
        import torch

        return torch.cat([part.blocks for part in self.parts])

    @cached_property
    def input_ids(self) -> torch.Tensor:
        """Token ids of this draw, int64 [sequences, length]: the parts' own, shuffled."""
        import torch

        return torch.cat([part.input_ids for part in self.parts])[self._order].contiguous()

    @property
    def written(self) -> torch.Tensor:
        """Which sequences of ``input_ids`` the model wrote itself, bool [sequences]."""
        import torch

        return torch.cat([part.written for part in self.parts])[self._order]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the texts that the sequences of ``input_ids`` come from."""
        names = [name for part in self.parts for name in part.sources]
        return tuple(names[place] for place in self._order.tolist())

    @cached_property
    def _order(self) -> torch.Tensor:
        import torch

        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randperm(self.config.sequences, generator=generator)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the parts' fingerprints, in order."""
        return hashlib.sha256("\0".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    def step(self, t: int) -> Mixed:
        """As :meth:`Calibration.step`, of every part."""
        return replace(self, parts=tuple(part.step(t) for part in self.parts))

    def describe(self) -> dict[str, Any]:
        """Provenance for a plan."""
        described = self.parts[0].describe()
        shared = {name: described[name] for name in ("length", "batch_size", "seed")}
        return {
            "source": ",".join(f"{source_name(name)}:{share:g}" for name, share in parse_mix(self.config.source)),
            "sequences": self.config.sequences,
            **shared,
            "fingerprint": self.fingerprint,
            "mix": [part.describe() for part in self.parts],
        }


CalibrationText = Calibration | Mixed
"""Text to calibrate on, whichever way it was asked for."""


def calibration_text(config: CalibrationConfig, tokenizer: Any, dense: DenseModel) -> CalibrationText:
    """The calibration text that ``config.source`` asks for: one text, ``self`` (what the ``dense`` model writes, which
    is loaded if need be), or a mix. Rank 0 reads files and data sets, and all ranks get the same text.

    Raises PrunekitError as :func:`prunekit.data.calibration.load_calibration` does.
    """
    parts = parse_mix(config.source)
    if config.group is not None and not any(has_fields(name) for name, _ in parts):
        raise PrunekitError(
            f"{config.source!r} has no rows that could name a group in {config.group!r}; give a file of rows, such as "
            "a .jsonl, or leave --set calib_group out."
        )
    counts = split(config.sequences, [share for _, share in parts])
    made = []
    for (name, _), count in zip(parts, counts, strict=True):
        own = replace(config, source=name, sequences=count)
        made.append(_self(own, tokenizer, dense) if name == SELF else _read(own, tokenizer))
    return made[0] if len(made) == 1 else Mixed(config, tuple(made))


def text_phases(source: str) -> tuple[str, ...]:
    """The phases in which :func:`calibration_text` makes the text that ``source`` asks for."""
    return tuple(OWN_TEXT if name == SELF else READING for name, _ in parse_mix(source))


def split(total: int, shares: Sequence[float], texts: str = "calibration texts", what: str = "sequences") -> list[int]:
    """Whole numbers in these proportions that add up to ``total``, none of them 0. Raises PrunekitError where there is
    too little of ``what`` for so many ``texts``."""
    if total < len(shares):
        raise PrunekitError(f"{len(shares)} {texts} need at least {len(shares)} {what}, got {total}.")
    counts = [max(1, int(total * share)) for share in shares]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        place = max(
            range(len(shares)), key=lambda i: step * (total * shares[i] - counts[i]) if counts[i] + step else -1e9
        )
        counts[place] += step
    return counts


def _read(config: CalibrationConfig, tokenizer: Any) -> Calibration:
    def told() -> list[Any]:
        made = load_calibration(config, tokenizer)
        return [made.blocks, made.text_sha256, made.read, made.groups]

    with progress(READING, 1) as advance:
        blocks, digest, read, groups = from_first(told)
        advance()
    return Calibration(config, blocks, digest, read=read, groups=groups)


def _self(config: CalibrationConfig, tokenizer: Any, dense: DenseModel) -> Calibration:
    start = bos(tokenizer)
    blocks = self_written(dense, first_token(tokenizer), config)
    if start is not None:
        blocks[:, 0] = start
    digest = hashlib.sha256(dense.source.fingerprint.encode())
    digest.update(blocks.numpy().astype("<i8").tobytes())
    return Calibration(config, blocks, digest.hexdigest())
