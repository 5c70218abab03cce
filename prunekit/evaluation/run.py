"""Evaluating models by their names, and their distance from the model they were pruned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from prunekit.data.sources import text_labels
from prunekit.errors import PrunekitError
from prunekit.evaluation.continuations import GLIMPSE
from prunekit.evaluation.measured import Comparison, Measured
from prunekit.evaluation.perplexity import Evaluation, check_vocabularies
from prunekit.evaluation.phases import continues, continues_worst, evaluation_phases, reading_work, reads
from prunekit.evaluation.turns import Asked, Turn, baseline_said, measured, with_worst
from prunekit.evaluation.windows import EvalConfig, windows
from prunekit.evaluation.worst import most_hard
from prunekit.models.source import as_source, load_tokenizer, pick_device
from prunekit.models.tokenizer.same_tokens import first_difference
from prunekit.utils.machine import speed_key
from prunekit.utils.numerics.finite import NotFinite, check_files
from prunekit.utils.phases.telling import phases
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.evaluation.continuations import ContinuationConfig
    from prunekit.evaluation.tasks.task_types import PreparedTasks, TasksConfig
    from prunekit.models.source import Source


@overload
def evaluate(  # type: ignore[overload-overlap]  # a str is a Sequence of str
    model: Source | str,
    *,
    baseline: Source | str | None = None,
    text: str | Sequence[str] = "builtin",
    config: EvalConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> Evaluation: ...


@overload
def evaluate(
    model: Sequence[Source | str],
    *,
    baseline: Source | str | None = None,
    text: str | Sequence[str] = "builtin",
    config: EvalConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> tuple[Evaluation, ...]: ...


def evaluate(
    model: Source | str | Sequence[Source | str],
    *,
    baseline: Source | str | None = None,
    text: str | Sequence[str] = "builtin",
    config: EvalConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> Evaluation | tuple[Evaluation, ...]:
    """Perplexity of ``model`` on each ``text`` (a file, ``builtin``, ``wikitext``, a dataset), and how far it is from
    ``baseline``, as `prunekit eval` measures it. Of several models there is an Evaluation each, and the baseline is
    computed once for all.

    Each model reads with its own tokenizer; token by token they are compared where that makes no difference. Raises
    PrunekitError where a model or a text can't be had, or logits are not finite.

    >>> evaluate("smaller", baseline="smollm2-135m").perplexity  # doctest: +SKIP
    21.4
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise PrunekitError("There is no text to evaluate on; name one, such as builtin.")
    several = isinstance(model, Sequence) and not isinstance(model, str)
    made = compare(
        model if several else [model],  # type: ignore[list-item, arg-type]
        baseline=baseline,
        texts=texts,
        config=config,
        dtype=dtype,
        device=device,
        revision=revision,
        baseline_revision=baseline_revision,
    )
    for each in made.models:
        _not_broken(each)
    found = tuple(each.texts for each in made.models if each.texts is not None)
    return found if several else found[0]


def _not_broken(model: Measured) -> None:
    if model.broken is not None:
        raise NotFinite(model.broken)


def measure(model: Source | str, **asked: Any) -> Measured:
    """All that `prunekit eval` measures of one model; ``asked`` is what :func:`compare` takes."""
    return compare([model], **asked).models[0]


def compare(
    models: Sequence[Source | str],
    *,
    baseline: Source | str | None = None,
    texts: Sequence[str] = ("builtin",),
    config: EvalConfig | None = None,
    continuations: ContinuationConfig | None = None,
    glimpse: bool = False,
    tasks: TasksConfig | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
) -> Comparison:
    """All that `prunekit eval` measures of ``models``: loss on ``texts``, ``continuations`` of prompts from them (or a
    ``glimpse`` at two, beside the baseline, where that is possible), ``tasks``.

    Models are in memory one after the other, the baseline first: what it says is computed once and kept. Everything
    that can be checked is checked before weights are loaded. A model whose outputs are no numbers is told of as broken,
    and the others are measured; where there is no other, and no baseline, that is raised. Raises PrunekitError where a
    model, a text or a task can't be had, the baseline's outputs are not finite, or models whose tokenizers differ are
    to be compared in one table or by their continuations.
    """
    if not models:
        raise PrunekitError("There is no model to evaluate; name one.")
    asked = Asked(config or EvalConfig(), continuations, None if tasks is None else _prepare(tasks))
    sources = [as_source(each, revision=revision) for each in models]
    if baseline is not None:
        sources.append(as_source(baseline, revision=baseline_revision))
    names = _labels(sources) if len(models) > 1 else [model_label(source.name) for source in sources]
    everyone = [
        Turn(source, name, load_tokenizer(source), dtype, device) for source, name in zip(sources, names, strict=True)
    ]
    pruned, dense = everyone[: len(models)], None if baseline is None else everyone[-1]
    apart = bool(texts) and _read_apart(everyone, asked, several=len(models) > 1)
    for each in everyone:
        # Where tokenizers make no difference, the first one reads for all.
        each.read(texts, asked, None if apart else everyone[0])
    may = glimpse and continuations is None and dense is not None and not apart
    if may and all(each.may_be_glimpsed() for each in everyone):
        asked = replace(asked, continuations=GLIMPSE, glimpse=True)
    if texts and len(everyone) > 1:
        for each in everyone:
            if dense is not None and not apart:
                check_vocabularies(each.vocabulary, dense.vocabulary)
            try:
                check_files(each.source.weight_files())
            except NotFinite as error:
                # Hours of the others' work would be lost.
                if each is dense:
                    raise
                each.damage = str(error)
    sound = [each for each in everyone if each.damage is None]
    if all(each is dense for each in sound):
        size = None if dense is None else dense.source.shape.parameters
        return Comparison(tuple(measured(each, dense, None, asked)[0] for each in pruned), size)
    named = text_labels(texts)
    writes = asked.continued(dict.fromkeys(named))
    titles = [
        *evaluation_phases([each.name for each in sound], named, writes=writes, tasks=tasks is not None),
    ]
    if dense is not None and continuations is not None and continuations.worst:
        titles += [continues_worst(dense.name, text) for text in named]
    with phases(*titles) as run:
        if run is not None:
            place = speed_key(pick_device(device))
            run.weigh(
                _reading([each for each in sound if each is not dense], dense, asked, apart), ["reads", dtype, *place]
            )
            run.weigh(_writing(pruned, dense, asked), ["continues", dtype, *place])
        said = None if dense is None else baseline_said(dense, asked, apart)
        found = [measured(each, dense, said, asked) for each in pruned]
        if dense is None:
            if len(found) == 1:
                _not_broken(found[0][0])
            return Comparison(tuple(each for each, _ in found), None)
        return Comparison(with_worst(found, pruned, dense, asked), dense.source.shape.parameters)


def _reading(pruned: Sequence[Turn], dense: Turn | None, asked: Asked, apart: bool) -> dict[str, float]:
    """How much work it is to read each text, by the titles of the phases."""
    found = {}
    for turn, heads in [
        *([] if dense is None else [(dense, int(apart))]),
        *((each, 1 if dense is None or apart else 2) for each in pruned),
    ]:
        for text, ids in turn.tokens.items():
            count = len(ids) if asked.config.max_tokens is None else min(len(ids), asked.config.max_tokens)
            read = len(windows(count, asked.config.length, asked.config.step)) * min(count, asked.config.length)
            found[reads(turn.name, text)] = reading_work(turn.source.shape, read, heads)
    return found


def _writing(pruned: Sequence[Turn], dense: Turn | None, asked: Asked) -> dict[str, float]:
    """How much work it is to go on with prompts of each text, and with those after which a model is farthest from the
    dense one: at most so much, as models may have some in common."""
    config = asked.continuations
    if config is None:
        return {}
    found = {}
    for turn in [*pruned, *([] if dense is None else [dense])]:
        cost = float(config.new_tokens) * turn.source.shape.parameters
        for text in asked.continued(turn.tokens):
            ids = turn.tokens[text]
            count = len(ids) if asked.config.max_tokens is None else min(len(ids), asked.config.max_tokens)
            hard = 0 if dense is None else most_hard(count, config)
            found[continues(turn.name, text)] = cost * (config.prompts + (0 if turn is dense else hard))
            if turn is dense:
                found[continues_worst(turn.name, text)] = cost * most_hard(count, config, len(pruned))
    return found


def _labels(sources: Sequence[Source]) -> list[str]:
    """What each is called in tables: folders of the same name are told apart by numbers."""
    labels: list[str] = []
    for source in sources:
        label = model_label(source.name)
        number = sum(each == label or each.startswith(f"{label} (") for each in labels)
        labels.append(f"{label} ({number + 1})" if number else label)
    return labels


def _read_apart(everyone: Sequence[Turn], asked: Asked, *, several: bool) -> bool:
    """Whether a model and its baseline read text as different tokens. Raises PrunekitError where such models can't be
    compared."""
    first, *others = everyone
    other = next((each for each in others if first_difference(first.tokenizer, each.tokenizer) is not None), None)
    if other is None:
        return False
    if several:
        raise PrunekitError(
            f"The tokenizers of {first.source.name} and {other.source.name} differ, so one table can't compare them; "
            "evaluate one model at a time."
        )
    if asked.continuations is not None:
        raise PrunekitError(
            f"--generate compares texts token by token, and the tokenizers of {first.source.name} and "
            f"{other.source.name} differ; leave it out, or give the model it was pruned from as --baseline."
        )
    return True


def _prepare(tasks: TasksConfig) -> PreparedTasks:
    """Before anything is loaded: a mistyped name should show at once."""
    from prunekit.evaluation.tasks.run import prepare_tasks

    return prepare_tasks(tasks)
