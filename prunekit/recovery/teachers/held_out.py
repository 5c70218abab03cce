"""Text that is judged by is measured several times, always against the dense model's whole distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prunekit.recovery.teachers.online import OnlineTeacher, Teacher
from prunekit.recovery.training.distance import HiddenTarget, Target
from prunekit.utils.process import ranks

if TYPE_CHECKING:
    from prunekit.data.packed.windows import Windows

# Hidden states of so many bytes stay in memory.
_MOST = 256 * 2**20


class HeldOutTeacher:
    """``teacher``, but for the windows ``held_out``: of these the ``online`` model's hidden states, of ``hidden_size``,
    stay in memory as they were computed first, where ``most`` bytes are enough for them."""

    def __init__(self, teacher: Teacher, online: OnlineTeacher, held_out: Windows, hidden_size: int, most: int = _MOST):
        self._teacher, self._online = teacher, online
        self._held_out = frozenset(online.keys(held_out))
        self._keeps = held_out.ids.numel() * hidden_size * 4 <= most
        self._hidden: dict[bytes, torch.Tensor] = {}

    def target(self, windows: Windows) -> Target:
        keys = self._online.keys(windows)
        judged = self._held_out.issuperset(keys)
        kept = judged and self._hidden.keys() >= set(keys)
        if ranks.size() == 1 and not judged:
            return self._teacher.target(windows)
        # A model that is spread over ranks is asked by all of them, or by none.
        if ranks.any_rank(not kept):
            made = self._online.hidden(windows)
            if not (judged and self._keeps):
                return HiddenTarget(self._online.head, made.flatten(0, 1))
            for key, hidden in zip(keys, made, strict=True):
                self._hidden.setdefault(key, hidden)
        return HiddenTarget(self._online.head, torch.cat([self._hidden[key] for key in keys]))
