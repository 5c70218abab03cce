"""A model that is asked: a local one, or one behind an endpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunekit.evaluation.acceptance.asked.answers import Answer, AnswerFile
from prunekit.evaluation.acceptance.records import Record

Told = Callable[[Record, Answer], None]


class Candidate(ABC):
    """``name`` is what tables call it, ``identity`` what a report says of it (JSON values): "model", "fingerprint"
    of its weights (None: they are not at hand), "model_sha256" of the file behind a "server" where that is known,
    and more."""

    name: str
    identity: Mapping[str, Any]
    keeps: bool = True
    """Whether its answers hold for ever: those of an endpoint hold for the run that asked."""

    @abstractmethod
    def keys(self, records: Sequence[Record], most: int) -> list[str]:
        """What each answer is kept by: it changes with all that the answer depends on. ``most`` is the limit of tokens
        of records without their own. Raises PrunekitError, with the line, where a record does not suit the model."""

    @abstractmethod
    def ask(self, records: Sequence[Record], missing: set[int], most: int, told: Told, failures: int) -> None:
        """Answer the records at the places ``missing``, and tell of each answer as it comes. After more than
        ``failures`` of them the rest is left."""

    def kept(self, file: AnswerFile, keys: Sequence[str]) -> list[Answer | None]:
        """What the file has of the answers."""
        return [file.kept.get(key) if self.keeps or key in file.fresh else None for key in keys]
