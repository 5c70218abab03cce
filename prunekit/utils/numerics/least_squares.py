"""Least squares for one projection: second moments, the ridge solution, and the order in which inputs can go.

Legend: T tokens, n inputs of the projection, d outputs.
"""

from __future__ import annotations

import copy

import torch

from prunekit.errors import PrunekitError
from prunekit.utils.numerics.bf16 import fast_sums
from prunekit.utils.numerics.finite import is_finite
from prunekit.utils.process.ranks import sum_over_ranks

_UNSOLVABLE = (
    "The inputs of a projection can't be solved for: their moments are not finite, or the ridge is too small for them. "
    "Compute in float32 (--dtype float32), or give more calibration text or a larger ridge."
)
# The least rows of a product that are worth making by themselves.
_BLOCK = 256


class Moments:
    """ZᵀZ [n, n] and YᵀZ [d, n] over all tokens: all that least squares needs of them.

    Products of a batch are made in float32 (with ``fast`` as in :func:`~prunekit.utils.numerics.bf16.fast_sums`) and
    added up in float64.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu", fast: bool = False):
        self._zz = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self._mirrored = True
        self.yz = torch.zeros(outputs, inputs, dtype=torch.float64, device=device)
        self.tokens = 0
        self._fast = fast

    @property
    def zz(self) -> torch.Tensor:
        """ZᵀZ [n, n], float64."""
        if not self._mirrored:
            for block in _blocks(len(self._zz)):
                self._zz[block.stop :, block] = self._zz[block, block.stop :].T
            self._mirrored = True
        return self._zz

    def add(self, z_Tn: torch.Tensor, y_Td: torch.Tensor, weight_T: torch.Tensor | None = None) -> None:
        """One batch of inputs and of the outputs wanted for them; ``weight_T`` says how much each token counts."""
        z, y = z_Tn.float(), y_Td.float()
        if weight_T is not None:
            root = weight_T.sqrt()[:, None]
            z, y = z * root, y * root
        with fast_sums(z.device, self._fast):
            # What lies below the diagonal is what lies above it: a third of the products less.
            for block in _blocks(z.shape[1]):
                self._zz[block, block.start :] += z[:, block].T @ z[:, block.start :]
            self.yz += y.T @ z
        self._mirrored = False
        self.tokens += len(z)

    def add_up(self, onto: int | None = None) -> None:
        """Make these the moments of what all ranks have added, on all of them, or on rank ``onto`` alone. Float64 holds
        sums of the products of batches exactly but for the rarest ones, so that their order changes nothing."""
        tokens = torch.tensor(self.tokens)
        sum_over_ranks(self._zz, self.yz, tokens, onto=onto)
        self._mirrored = False
        self.tokens = int(tokens)


def _blocks(size: int) -> list[slice]:
    """Rows of a symmetric matrix of ``size``, in up to four blocks, none too small to be multiplied fast."""
    step = max(_BLOCK, -(-size // 4))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def solve(moments: Moments, weight_dn: torch.Tensor, ridge: float) -> torch.Tensor:
    """argmin_W ‖Z Wᵀ − Y‖² + λ ‖W − W₀‖², with W₀ = ``weight_dn`` [d, n] and λ = ``ridge`` times the mean of ZᵀZ's
    diagonal. Returns float64 [d, n].

    Raises PrunekitError where the moments are not finite.
    """
    zz, weight = moments.zz, weight_dn.to(moments.zz)
    penalty = _penalty(moments, ridge)
    factor = _factor(zz, penalty)
    made: torch.Tensor = torch.cholesky_solve((moments.yz + penalty * weight).T, factor).T
    return made


def _penalty(moments: Moments, ridge: float) -> float:
    """λ: ``ridge`` times the mean of ZᵀZ's diagonal; 1 where the inputs are all zero, and any would do."""
    return ridge * moments.zz.diagonal().mean().item() or 1.0


def _factor(zz: torch.Tensor, penalty: float) -> torch.Tensor:
    """The Cholesky factor of ZᵀZ + λI."""
    factor, failed = torch.linalg.cholesky_ex(zz + penalty * torch.eye(len(zz), dtype=zz.dtype, device=zz.device))
    if failed.item() or not is_finite(factor):
        raise PrunekitError(_UNSOLVABLE)
    return factor


def _solved(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    made, failed = torch.linalg.solve_ex(matrix, right)
    if failed.any() or not is_finite(made):
        raise PrunekitError(_UNSOLVABLE)
    return made


class Elimination:
    """Backward elimination of groups of inputs with exact updates (Optimal Brain Surgeon; ZipLM, arXiv 2302.04089).

    Inputs come in groups of ``rows`` (1: FFN channels; head_dim: heads). With H = ZᵀZ + λI and W the ridge solution,
    removing group g costs tr(M W_g ([H⁻¹]_gg)⁻¹ W_gᵀ), M = ``metric`` [d, d] (default: the identity), and
    W ← W − W_g ([H⁻¹]_gg)⁻¹ [H⁻¹]_g:, H⁻¹ alike, is the ridge solution without it. ``loss`` counts what went, in the
    metric and per token, the penalty included. Matrices keep their size; what belongs to removed inputs is zero.
    """

    def __init__(
        self,
        moments: Moments,
        weight_dn: torch.Tensor,
        ridge: float,
        *,
        rows: int = 1,
        metric: torch.Tensor | None = None,
    ):
        zz = moments.zz
        size = len(zz)
        penalty = _penalty(moments, ridge)
        self.inverse = torch.cholesky_inverse(_factor(zz, penalty))
        self.weight = (moments.yz + penalty * weight_dn.to(zz)) @ self.inverse
        self.rows = rows
        self.loss = 0.0
        # The metric times the weight, kept up to date with it: cheaper than multiplying every time.
        self._seen = self.weight.clone() if metric is None else metric.to(zz) @ self.weight
        self._tokens = max(moments.tokens, 1)
        self.alive = torch.ones(size // rows, dtype=torch.bool, device=zz.device)

    def copy(self) -> Elimination:
        """The same state, to go on from in two ways."""
        made = copy.copy(self)
        for name in ("inverse", "weight", "_seen", "alive"):
            setattr(made, name, getattr(self, name).clone())
        return made

    def compacted(self) -> Elimination:
        """The same state without what has gone: its groups are those alive, in their order."""
        left = _expand(self.alive.nonzero()[:, 0], self.rows)
        made = copy.copy(self)
        made.inverse, made.weight, made._seen = self.inverse[left][:, left], self.weight[:, left], self._seen[:, left]
        made.alive = self.alive[self.alive]
        return made

    def costs(self) -> torch.Tensor:
        """What each group would cost if it went next by itself, per token [groups]; infinite where it has gone."""
        if self.rows == 1:
            costs = (self.weight * self._seen).sum(0) / self.inverse.diagonal()
        else:
            blocks = self._blocks()
            # What has gone is all zero: solve with the identity there.
            blocks[~self.alive] = torch.eye(self.rows, dtype=blocks.dtype, device=blocks.device)
            parts, images = (each.T.reshape(len(self.alive), self.rows, -1) for each in (self.weight, self._seen))
            costs = (images * _solved(blocks, parts)).sum((1, 2))
        return torch.where(self.alive, costs.clamp(min=0) / self._tokens, torch.inf)

    def _blocks(self) -> torch.Tensor:
        """[H⁻¹]_gg of every group [groups, rows, rows]."""
        count, rows = len(self.alive), self.rows
        view = self.inverse.view(count, rows, count, rows)
        return view.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def remove(self, groups: torch.Tensor) -> None:
        """Take ``groups`` (indices) away together, and solve the rest anew."""
        out = _expand(groups, self.rows)
        across = self.inverse[:, out]
        own, images = self.weight[:, out], self._seen[:, out]
        solved = _solved(self.inverse[out][:, out], torch.cat([across.T, own.T], 1))
        rest, inner = solved[:, : len(across)], solved[:, len(across) :]
        self.loss += max((images * inner.T).sum().item(), 0.0) / self._tokens
        self.weight.addmm_(own, rest, alpha=-1)
        self._seen.addmm_(images, rest, alpha=-1)
        self.inverse.addmm_(across, rest, alpha=-1)
        self.alive[groups] = False
        self.weight[:, out] = self._seen[:, out] = 0
        self.inverse[out] = 0
        self.inverse[:, out] = 0


def _expand(groups: torch.Tensor, rows: int) -> torch.Tensor:
    return groups if rows == 1 else (groups[:, None] * rows + torch.arange(rows, device=groups.device)).reshape(-1)
