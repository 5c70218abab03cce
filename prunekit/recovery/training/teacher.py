"""Where the dense model's distributions come from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from prunekit.models.head import Head, hidden_states
from prunekit.recovery.training.distance import HiddenTarget, Target

if TYPE_CHECKING:
    from prunekit.data.packed.windows import Windows


class Teacher(Protocol):
    """``target`` of windows [B, L] tells of B · L positions, row after row."""

    def target(self, windows: Windows) -> Target: ...


class OnlineTeacher:
    """The dense ``model`` itself, computed beside every step: one more forward pass, and nothing on the disk."""

    def __init__(
        self, model: Any, computing: Callable[[], AbstractContextManager[Any]], *, separate: bool, fast: bool = False
    ):
        self._model, self._computing, self._separate = model.requires_grad_(False), computing, separate
        self.head = Head(model, fast)

    @torch.no_grad()
    def hidden(self, windows: Windows) -> torch.Tensor:
        """Final hidden states [B, L, hidden_size]."""
        with self._computing():
            return hidden_states(self._model, windows.ids, windows.documents if self._separate else None)

    def target(self, windows: Windows) -> Target:
        return HiddenTarget(self.head, self.hidden(windows).flatten(0, 1))
