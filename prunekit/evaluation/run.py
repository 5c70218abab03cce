"""Evaluating a model by its name, and its distance from the model it was pruned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import check_length, check_tokens
from prunekit.data.sources import source_name
from prunekit.errors import PrunekitError
from prunekit.evaluation import perplexity
from prunekit.evaluation.continuations import ContinuationConfig, check_room, generation_quality, pick_prompts
from prunekit.evaluation.own_tokenizers import Read, evaluate_apart
from prunekit.evaluation.perplexity import EvalConfig, Evaluation, read_texts
from prunekit.models.source import as_source, load_model, load_tokenizer, pick_device, pick_dtype
from prunekit.models.tokenizer.same_tokens import first_difference
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.evaluation.continuations import GenerationQuality
    from prunekit.evaluation.task_types import PreparedTasks, TaskReport, TasksConfig
    from prunekit.models.source import Source


@dataclass(frozen=True)
class Measured:
    """What was measured of ``model``, and of ``baseline`` where there is one: loss on ``texts``, continuations of
    prompts from each text (``generation``), ``tasks``; None or empty where it was not asked for."""

    model: str
    baseline: str | None
    dtype: str
    device: str
    texts: Evaluation | None = None
    generation: tuple[GenerationQuality, ...] = ()
    tasks: TaskReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        nothing = {"model": self.model, "baseline": self.baseline, "dtype": self.dtype, "device": self.device}
        data = self.texts.to_dict() if self.texts else {**nothing, "results": []}
        if self.generation:
            data["generation"] = [each.to_dict() for each in self.generation]
        if self.tasks is not None:
            data["tasks"] = self.tasks.to_dict()
        return data


def evaluate(
    model: Source | str,
    *,
    baseline: Source | str | None = None,
    text: str | Sequence[str] = "builtin",
    config: EvalConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> Evaluation:
    """Perplexity of ``model`` on each ``text`` (a file, ``builtin``, ``wikitext``, a dataset), and how far it is from
    ``baseline``, as `prunekit eval` measures it.

    Each model reads with its own tokenizer; token by token they are compared where that makes no difference. Raises
    PrunekitError where a model or a text can't be had, or logits are not finite.

    >>> evaluate("smaller", baseline="smollm2-135m").perplexity  # doctest: +SKIP
    21.4
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise PrunekitError("There is no text to evaluate on; name one, such as builtin.")
    measured = measure(
        model,
        baseline=baseline,
        texts=texts,
        config=config,
        dtype=dtype,
        device=device,
        revision=revision,
        baseline_revision=baseline_revision,
    )
    assert measured.texts is not None
    return measured.texts


def measure(
    model: Source | str,
    *,
    baseline: Source | str | None = None,
    texts: Sequence[str] = ("builtin",),
    config: EvalConfig | None = None,
    continuations: ContinuationConfig | None = None,
    tasks: TasksConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> Measured:
    """All that `prunekit eval` measures: loss on ``texts``, ``continuations`` of prompts from them, ``tasks``.

    Everything that can be checked is checked before weights are loaded. Raises PrunekitError as :func:`evaluate` does,
    and where continuations of models with different tokenizers are asked for, or a task can't be had.
    """
    config = config or EvalConfig()
    prepared = None if tasks is None else _prepare(tasks)
    source = as_source(model, revision=revision)
    dense = None if baseline is None else as_source(baseline, revision=baseline_revision)
    sources = [each for each in (source, dense) if each is not None]
    tokenizers = [load_tokenizer(each) for each in sources]
    # Each model reads text with its own tokenizer; token by token they are compared where that makes no difference.
    apart = dense is not None and first_difference(tokenizers[1], tokenizers[0]) is not None
    if apart and continuations is not None and dense is not None:
        raise PrunekitError(
            f"--generate compares texts token by token, and the tokenizers of {source.name} and {dense.name} "
            "differ; leave it out, or give the model it was pruned from as --baseline."
        )
    read = [read_texts(texts, tokenizers[0], config)]
    read += [read_texts(texts, tokenizers[1], config) if apart else read[0]] if dense is not None else []
    for each, tokens in zip(sources, read, strict=True):
        if texts:
            check_length(config, each.config)
        for text, ids in tokens.items():
            check_tokens(ids, each.config)
            if continuations is not None:
                check_room(each.config, model_label(each.name), continuations)
                pick_prompts(ids, continuations, None, source_name(text))
    name, dense_name = model_label(source.name), model_label(dense.name) if dense is not None else "baseline"
    names = {"name": name, "baseline_name": dense_name}
    loaded: dict[str, Any] = {}
    report: Evaluation | None = None
    generation: tuple[GenerationQuality, ...] = ()
    if texts:
        loaded = {each.name: load_model(each, dtype=dtype, device=device) for each in sources}
        pruned, dense_model = loaded[source.name], loaded[dense.name] if dense is not None else None
        if apart:
            first, second = (
                Read(loaded[each.name], tokenizer, tokens)
                for each, tokenizer, tokens in zip(sources, tokenizers, read, strict=True)
            )
            report = evaluate_apart(first, second, config, **names)
        else:
            report = perplexity.evaluate(pruned, tokenizers[0], read[0], config, dense_model, **names)
        if continuations is not None:
            generation = tuple(
                generation_quality(pruned, tokenizers[0], ids, continuations, dense_model, text=result.text, **names)
                for ids, result in zip(read[0].values(), report.results, strict=True)
            )
    scored = None
    if prepared is not None:
        scored = _score(prepared, sources, loaded, tokenizers, dtype, device, names)
    computed = (pick_dtype(dtype) or source.dtype, pick_device(device))
    return Measured(
        name,
        dense_name if dense is not None else None,
        str(computed[0]).removeprefix("torch."),
        str(computed[1]),
        report,
        generation,
        scored,
    )


def _prepare(tasks: TasksConfig) -> PreparedTasks:
    """Before anything is loaded: a mistyped name should show at once."""
    from prunekit.evaluation.tasks import prepare_tasks

    return prepare_tasks(tasks)


def _score(
    prepared: PreparedTasks,
    sources: Sequence[Source],
    loaded: dict[str, Any],
    tokenizers: Sequence[Any],
    dtype: str,
    device: str,
    names: dict[str, str],
) -> TaskReport:
    from prunekit.evaluation.task_report import make_report
    from prunekit.evaluation.tasks import score_tasks

    def results(place: int, name: str) -> Any:
        source = sources[place]
        return score_tasks(
            prepared,
            lambda: loaded.get(source.name) or load_model(source, dtype=dtype, device=device),
            tokenizers[place],
            name=name,
            identity={
                "weights": source.fingerprint,
                "dtype": str(pick_dtype(dtype) or source.dtype),
                "device": pick_device(device).type,
            },
        )

    own = results(0, names["name"])
    dense = results(1, names["baseline_name"]) if len(sources) > 1 else None
    return make_report(prepared, own, dense, **names)
