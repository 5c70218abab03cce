"""From what a user names (a model, a dense one or its server) to the signals of a watch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunekit.models.source import Source, as_source
from prunekit.monitoring.baseline.stored import Baseline
from prunekit.monitoring.scoring.contexts import ScoringConfig
from prunekit.monitoring.scoring.endpoint import DenseServer
from prunekit.monitoring.scoring.features import check_features_file, features_file
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.signals import model_signals
from prunekit.monitoring.signals.protocol import ModelSignal
from prunekit.utils.endpoints.endpoint import Endpoint


def make_scorer(
    model: Source | str,
    dense: Source | str | DenseServer | None = None,
    config: ScoringConfig | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
) -> Scorer:
    """Scores requests under the deployed ``model``, beside ``dense``: a checkpoint, or the address of a server (vLLM)
    that has it. Raises PrunekitError where one can't be had, or the two read text as other tokens."""
    if isinstance(dense, str) and dense.startswith(("http://", "https://")):
        dense = DenseServer(Endpoint(dense))
    elif isinstance(dense, str):
        dense = as_source(dense)
    return Scorer(as_source(model), dense, config, dtype=dtype, device=device)


@contextmanager
def signals_to_learn(
    scorer: Scorer, baseline: Path, *, window: int = 200, overwrite: bool = False
) -> Iterator[tuple[Sequence[ModelSignal], dict[str, str]]]:
    """The signals for a ``baseline`` that is made in the block, and what their models are called. Hidden states of the
    reference are written beside it, and taken away again where the block fails.

    Raises PrunekitError where these can't be written, before anything is computed.
    """
    file = features_file(baseline)
    check_features_file(file, overwrite)
    existed = file.exists()
    names = {"model" if key == "deployed" else key: name for key, name in scorer.labels.items() if name is not None}
    try:
        yield model_signals(scorer, file, window=window, overwrite=overwrite), names
    except BaseException:
        if not existed:
            file.unlink(missing_ok=True)
        raise


def signals_to_watch(scorer: Scorer, baseline: Path, base: Baseline) -> Sequence[ModelSignal]:
    """The signals that judge windows by a baseline in the file ``baseline``."""
    return model_signals(scorer, features_file(baseline), window=base.config.window)
