"""The signals of models, from the names that a user gives: the deployed model, and the dense one or its server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    from prunekit.monitoring.signals.protocol import ModelSignal


def signals_of(
    model: str | None,
    dense: str | None,
    baseline: Path,
    *,
    window: int,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    dense_revision: str | None = None,
    dense_served_name: str | None = None,
    api_key_env: str | None = None,
    must_answer: bool = False,
    overwrite: bool = False,
) -> Sequence[ModelSignal]:
    """The signals of the deployed ``model``, and beside it those of ``dense``: a checkpoint, or the address of a vLLM
    server that has it, as ``dense_served_name`` (None: the first it lists), with the API key of the variable
    ``api_key_env``. Hidden states lie beside ``baseline``. Nothing where no model is named.

    Raises PrunekitError where a model can't be had, a server that ``must_answer`` does not, or only the dense model is
    named.
    """
    at_server = dense is not None and dense.startswith(("http://", "https://"))
    if not at_server and (dense_served_name is not None or api_key_env is not None):
        raise PrunekitError(
            "--dense-served-name and --api-key-env are of a dense model at a server; name its address with --dense, or "
            "leave them out."
        )
    if model is None:
        if dense is not None:
            raise PrunekitError("The dense model alone says nothing of the deployed one; name that one too.")
        return ()
    from prunekit.models.source import resolve
    from prunekit.monitoring.scoring.endpoint import DenseServer
    from prunekit.monitoring.scoring.features import features_file
    from prunekit.monitoring.scoring.scorer import Scorer
    from prunekit.monitoring.scoring.signals import model_signals
    from prunekit.utils.endpoints.endpoint import Endpoint

    beside = None
    if dense is not None and at_server:
        beside = DenseServer(Endpoint(dense, dense_served_name, api_key_env))
        if must_answer:
            beside.ask_name()
    scorer = Scorer(
        resolve(model, revision=revision),
        beside if beside is not None or dense is None else resolve(dense, revision=dense_revision),
        dtype=dtype,
        device=device,
    )
    return model_signals(scorer, features_file(baseline), window=window, overwrite=overwrite)
