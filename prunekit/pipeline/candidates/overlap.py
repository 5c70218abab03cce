"""How much of the text that candidates are measured on was calibrated on: what makes them look better than they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Tokens in a row that hardly occur twice by chance.
_RUN = 32
# Odd, so that products wrap around without losing what they tell apart.
_FACTOR = 6364136223846793005
MUCH = 0.01
"""More than this share of shared text is told."""


def same_file(text: str, calib: str) -> bool:
    """Whether ``text`` is one of the files that ``calib`` (a mix) names."""
    from prunekit.data.mixture import parse_mix

    mine = Path(text)
    if not mine.is_file():
        return False
    return any(Path(name).is_file() and mine.samefile(name) for name, _ in parse_mix(calib))


def share_seen(ids: torch.Tensor, calibrated: torch.Tensor) -> float:
    """The share of the tokens ``ids`` [n] that lie in a run of 32 which the sequences ``calibrated`` [N, L] hold
    too."""
    import torch

    if len(ids) < _RUN or calibrated.shape[-1] < _RUN:
        return 0.0
    known = _hashes(calibrated).flatten()
    found = torch.isin(_hashes(ids), known)
    seen = torch.zeros(len(ids), dtype=torch.bool)
    for place in found.nonzero().flatten().tolist():
        seen[place : place + _RUN] = True
    return float(seen.float().mean())


def _hashes(ids: torch.Tensor) -> torch.Tensor:
    """A number for every run of tokens [..., L] → [..., L - 31]."""
    import torch

    made = torch.zeros(*ids.shape[:-1], ids.shape[-1] - _RUN + 1, dtype=torch.int64)
    for place in range(_RUN):
        made = made * _FACTOR + ids[..., place : place + made.shape[-1]] + 1
    return made
