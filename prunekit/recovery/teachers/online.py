"""The dense model at work beside every step."""

from __future__ import annotations

import hashlib
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
        self._model, self.computing, self._separate = model.requires_grad_(False), computing, separate
        self.head = Head(model, fast)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights, which the head takes."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @torch.no_grad()
    def hidden(self, windows: Windows) -> torch.Tensor:
        """Final hidden states [B, L, hidden_size]."""
        with self.computing():
            return hidden_states(self._model, windows.ids, windows.documents if self._separate else None)

    def target(self, windows: Windows) -> Target:
        return HiddenTarget(self.head, self.hidden(windows).flatten(0, 1))

    def keys(self, windows: Windows) -> list[bytes]:
        """A name of 16 bytes for each window, from all that decides what the model says of it."""
        parts = (windows.ids, windows.documents) if self._separate else (windows.ids,)
        rows = zip(*(part.cpu().numpy() for part in parts), strict=True)
        return [hashlib.blake2b(b"".join(part.tobytes() for part in row), digest_size=16).digest() for row in rows]
