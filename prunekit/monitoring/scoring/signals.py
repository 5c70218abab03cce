"""The signals of a watch that need models. Each has a figure a window, and is greater where things are worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.monitoring.log.request import Request, sample
from prunekit.monitoring.scoring import mmd
from prunekit.monitoring.scoring.dense import DenseAway
from prunekit.monitoring.scoring.endpoint import UNKNOWN
from prunekit.monitoring.scoring.features import about, check_features_file, packed, read_features, write_packed
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.scores import RequestScore, mean
from prunekit.monitoring.signals.protocol import WINDOW_SAMPLE, Kind, ModelSignal, Scored

# A mean over fewer requests says nothing.
LEAST = 8


@dataclass(frozen=True)
class Readings:
    """Reads the requests of a window that all signals look at, with the ``scorer``, which does it once for all.
    ``failed`` and ``away`` remember why the last window could not be read, by the deployed model or by the dense one:
    other signals need not wait for the same failure."""

    scorer: Scorer
    window: int
    failed: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False)
    away: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False)

    def of(self, requests: Sequence[Request], beside: bool) -> tuple[list[RequestScore], str]:
        """Scores, and why some requests have none (the most common reason; empty: all have). Raises PrunekitError where
        a model can't be loaded, can't be reached or gives numbers that are none. A dense model that can't be reached
        is a reason for signals ``beside`` it alone."""
        config = self.scorer.config
        taken = sample(requests, min(config.prompts, WINDOW_SAMPLE))
        window = tuple(each.id for each in taken)
        if window in self.failed:
            raise PrunekitError(self.failed[window])
        if window not in self.away:
            self.failed.clear()
            self.away.clear()
        try:
            made, why = self._scores(taken, window)
        except PrunekitError as error:
            self.failed[window] = str(error)
            raise
        if beside and window in self.away:
            raise DenseAway(self.away[window])
        reasons = list(why.values())
        return made, max(reasons, key=reasons.count) if reasons else ""

    def _scores(self, taken: Sequence[Request], window: tuple[str, ...]) -> tuple[list[RequestScore], dict[str, str]]:
        if window not in self.away:
            try:
                return self.scorer.scores(taken, taken[: self.shadowed])
            except DenseAway as error:
                self.away[window] = str(error)
        return self.scorer.scores(taken)

    @property
    def shadowed(self) -> int:
        """How many requests of a window the dense model reads."""
        return min(self.scorer.config.shadowed(self.window), self.scorer.config.prompts, WINDOW_SAMPLE)


@dataclass(frozen=True)
class MeanSignal:
    """The mean over a window's requests of what ``of`` makes of a score (None: nothing, for such a request)."""

    name: str
    kind: Kind
    title: str
    transform: str
    of: Callable[[RequestScore], float | None]
    missing: str
    readings: Readings
    own_weights: bool

    def shortened(self, request: Request) -> Request:
        """What of it is read."""
        return self.readings.scorer.config.shortened(request)

    def reference(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Which models and how many tokens figures belong to."""
        return {"identity": self.readings.scorer.identity}

    def score(self, window: Sequence[Request], state: dict[str, Any]) -> Scored:
        """The window's mean. Raises PrunekitError where a model can't be loaded or gives numbers that are none."""
        if (why := changed(state, self.readings.scorer.identity, self.own_weights)) is not None:
            return Scored(None, why)
        scores, why_not = self.readings.of(window, beside=not self.own_weights)
        values = [value for each in scores if (value := self.of(each)) is not None]
        if len(values) < LEAST:
            return too_few(len(values), why_not or self.missing)
        value, error = mean(values)
        details: dict[str, Any] = {"requests": len(values), "standard_error": error}
        if any(each.shadow is not None and each.shadow.bound for each in scores) and "kl" in self.name:
            details["lower_bound"] = True
        return Scored(value, details=details)


@dataclass(frozen=True)
class PromptDistance:
    """MMD² between hidden states of a window's prompts and those of the reference, which lie in ``file``; until
    :meth:`keep` writes them, they are ``pending``, by the SHA-256 of the file to be."""

    readings: Readings
    file: Path
    overwrite: bool = False
    name: str = "prompt_mmd"
    kind: Kind = "input"
    title: str = "distance of prompts from the reference (MMD² of hidden states)"
    transform: str = "none"
    pending: dict[str, tuple[mmd.Reference, bytes]] = field(default_factory=dict, compare=False)

    def reference(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Raises PrunekitError where too few prompts can be read, or the file can't be written."""
        check_features_file(self.file, self.overwrite)
        scorer = self.readings.scorer
        scores, _ = scorer.scores(sample(requests, scorer.config.reference))
        features = np.stack([each.feature for each in scores]) if scores else np.zeros((0, 1))
        made = mmd.reference(features, tuple(each.id for each in scores))
        # As a file holds them, so that figures stay the same.
        made = replace(made, features=made.features.astype(np.float16).astype(np.float32))
        data = packed(made)
        said = about(self.file, made, data)
        self.pending.clear()
        self.pending[said["sha256"]] = (made, data)
        return {"identity": scorer.identity, **said}

    def keep(self) -> None:
        """Write the file: just before the baseline, so that a run that fails leaves another's as it was."""
        for _, data in self.pending.values():
            write_packed(self.file, data, overwrite=self.overwrite)
        self.pending.clear()

    def score(self, window: Sequence[Request], state: dict[str, Any]) -> Scored:
        """The distance; the window's own requests are left out of the reference."""
        if (why := changed(state, self.readings.scorer.identity, True)) is not None:
            return Scored(None, why)
        scores, why_not = self.readings.of(window, beside=False)
        if len(scores) < LEAST:
            return too_few(len(scores), why_not)
        pending = self.pending.get(str(state.get("sha256")))
        kept = read_features(self.file.parent, state) if pending is None else pending[0]
        features = np.stack([each.feature for each in scores])
        return Scored(kept.distance(features, tuple(each.id for each in scores)), details={"requests": len(scores)})


@dataclass(frozen=True)
class OtherWeights:
    """1 where the deployed model's weights are not those of the baseline, else 0."""

    scorer: Scorer
    name: str = "other_weights"
    kind: Kind = "weights"
    title: str = "weights of the deployed model are not those of the baseline"
    transform: str = "none"

    def reference(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The fingerprint."""
        return {"identity": self.scorer.identity}

    def score(self, window: Sequence[Request], state: dict[str, Any]) -> Scored:
        """What the fingerprint says."""
        return Scored(float(state["identity"]["deployed"] != self.scorer.identity["deployed"]))


def changed(state: dict[str, Any], now: dict[str, Any], own_weights: bool) -> str | None:
    """Why figures of ``now`` can't be compared with those of the baseline; None where they can. With other weights of
    the deployed model that is so of ``own_weights`` alone: others are there to tell what such weights do."""
    then = state.get("identity") or {}
    if own_weights and then.get("deployed") != now["deployed"]:
        return "the deployed model's weights are not those of the baseline; put these back, or make a new baseline"
    if not own_weights and not same_dense(then.get("dense"), now["dense"]):
        return "the dense model is not that of the baseline; name the same one, or make a new baseline"
    for key, words in (("dtype", "dtype"), ("prompt_tokens", "tokens of a prompt"), ("answer_tokens", "of an answer")):
        if then.get(key) != now[key]:
            return f"the baseline was made with {words} {then.get(key)}, not {now[key]}; ask for the same"
    return None


def same_dense(then: Any, now: Any) -> bool:
    """Whether both are one dense model, as far as is known: a server that has never been reached has not said."""
    return then == now or any(isinstance(each, str) and each.startswith(UNKNOWN) for each in (then, now))


def too_few(count: int, why: str) -> Scored:
    """A window of which too little could be scored."""
    return Scored(
        None, f"only {count} requests of the window could be scored, of at least {LEAST}" + (why and f": {why}")
    )


_NO_ANSWER = "the log holds no answers"
_NO_LOGPROB = "the log holds no logprob_mean of answers that are read whole"

_ALONE: tuple[tuple[str, Kind, str, str, Callable[[RequestScore], float | None], str], ...] = (
    ("prompt_nll", "input", "loss of the deployed model on prompts", "none", lambda each: each.prompt_nll, ""),
    (
        "answer_nll",
        "output",
        "loss of the deployed model on the answers that the server gave",
        "none",
        lambda each: each.answer_nll,
        _NO_ANSWER,
    ),
    (
        "logprob_gap",
        "server",
        "log-probability of answers, the server's against the deployed model's",
        "log",
        lambda each: each.logprob_gap,
        _NO_LOGPROB,
    ),
)
_BESIDE = (
    ("shadow_kl", "log", "KL of the dense model from the deployed one", lambda each: each.kl, ""),
    (
        "shadow_disagreement",
        "none",
        "share of tokens for which the dense model ranks another token first",
        lambda each: 1 - each.agreement,
        "",
    ),
    ("prompt_increase", "none", "loss on prompts, deployed less dense", lambda each: each.prompt_increase, ""),
    (
        "answer_surprise",
        "none",
        "loss on answers, dense less deployed",
        lambda each: None if each.answer_increase is None else -each.answer_increase,
        _NO_ANSWER,
    ),
)


def model_signals(
    scorer: Scorer, features: Path, *, window: int = 200, overwrite: bool = False
) -> tuple[ModelSignal, ...]:
    """The signals that ``scorer`` can give: those of the deployed model, and where it has a dense one those beside it.

    ``features`` is the file of the reference's hidden states, ``window`` the requests of a window.
    """
    readings = Readings(scorer, window)
    made: list[ModelSignal] = [OtherWeights(scorer), PromptDistance(readings, features, overwrite)]
    made += [MeanSignal(*each, readings, True) for each in _ALONE]
    if scorer.dense is not None:
        made += [
            MeanSignal(name, "quality", title, transform, _of_shadow(of), missing, readings, False)
            for name, transform, title, of, missing in _BESIDE
        ]
    return tuple(made)


def _of_shadow(of: Callable[[Any], float | None]) -> Callable[[RequestScore], float | None]:
    return lambda each: None if each.shadow is None else of(each.shadow)
