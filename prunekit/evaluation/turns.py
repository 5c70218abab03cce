"""Models on their turn: each is loaded when its weights are needed, and let go before the next one."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.history import trainings
from prunekit.checkpoint.record import plan_digest, read_record
from prunekit.checkpoint.trained import plan_of
from prunekit.data.calibration import check_length, check_tokens
from prunekit.data.sources import source_name
from prunekit.data.tokenised import bos
from prunekit.evaluation import continuations as writing
from prunekit.evaluation import perplexity
from prunekit.evaluation.baseline import Kept, keep
from prunekit.evaluation.continuations import GLIMPSE, Continuations, check_room, pick_prompts
from prunekit.evaluation.measured import Measured
from prunekit.evaluation.own_tokenizers import Read, compare_apart
from prunekit.evaluation.phases import continues, continues_worst
from prunekit.evaluation.windows import EvalConfig, read_texts
from prunekit.evaluation.worst import Hard, WorstExample, hardest, prompts_at, worst_examples
from prunekit.models.source import load_model, pick_device, pick_dtype
from prunekit.utils.files.hashes import token_ids_sha256
from prunekit.utils.machine import describe_machine
from prunekit.utils.names import pathless
from prunekit.utils.numerics.finite import NotFinite
from prunekit.utils.phases.telling import unneeded

if TYPE_CHECKING:
    import torch

    from prunekit.evaluation.continuations import ContinuationConfig, Example, GenerationQuality
    from prunekit.evaluation.perplexity import Evaluation
    from prunekit.evaluation.tasks.task_types import PreparedTasks, Results, TaskReport
    from prunekit.models.source import Source


@dataclass(frozen=True)
class Asked:
    """What is measured of every model."""

    config: EvalConfig
    continuations: ContinuationConfig | None
    tasks: PreparedTasks | None
    glimpse: bool = False
    """Whether the continuations are only to be shown: of the first text, without figures."""

    def continued(self, texts: Iterable[str]) -> list[str]:
        """Which of the ``texts`` are continued."""
        return [] if self.continuations is None else [*texts][: 1 if self.glimpse else None]


@dataclass
class Turn:
    """A model on its turn: loaded when its weights are first asked for, and let go afterwards. ``tokens`` are the texts
    as ``reader`` gives them, int64 [n] by their labels."""

    source: Source
    name: str
    tokenizer: Any
    dtype: str
    device: str
    reader: Any = None
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)
    damage: str | None = None
    """What is wrong with its weights: then it is not run."""

    @property
    def vocabulary(self) -> tuple[str, int]:
        return self.name, self.source.shape.vocab_size

    @cached_property
    def model(self) -> Any:
        return load_model(self.source, dtype=self.dtype, device=self.device)

    def release(self) -> None:
        vars(self).pop("model", None)
        gc.collect()

    def read(self, texts: Sequence[str], asked: Asked, other: Turn | None) -> None:
        """Read the texts, or take those of ``other``, which has read them. Raises PrunekitError where one does not fit
        the model."""
        if other is None or other is self:
            self.reader, self.tokens = self.tokenizer, read_texts(texts, self.tokenizer, asked.config)
        else:
            self.reader, self.tokens = other.reader, other.tokens
        if texts:
            check_length(asked.config, self.source.config)
        for text, ids in self.tokens.items():
            check_tokens(ids, self.source.config)
            if asked.continuations is not None:
                check_room(self.source.config, self.name, asked.continuations)
                pick_prompts(ids, asked.continuations, None, source_name(text))

    def may_be_glimpsed(self) -> bool:
        """Whether a glimpse at what it writes is possible: texts may be too short, and models too."""
        text = next(iter(self.tokens.values()), None)
        most = getattr(self.source.config, "max_position_embeddings", None) or math.inf
        needed = GLIMPSE.prompt_length + GLIMPSE.new_tokens
        return text is not None and len(text) >= GLIMPSE.prompts * GLIMPSE.prompt_length and most >= needed

    def continues(self, asked: Asked, hard: Mapping[str, Sequence[Hard]] | None = None) -> dict[str, Continuations]:
        """What it writes after the prompts of each text, and then after those that are ``hard``; nothing where that was
        not asked for."""
        import torch

        config = asked.continuations
        if config is None:
            return {}
        made = {}
        for text in asked.continued(self.tokens):
            prompts = pick_prompts(self.tokens[text], config, bos(self.reader), source_name(text))
            starts = [each.start for each in (hard or {}).get(text, ())]
            prompts = torch.cat([prompts, self.prompts(text, starts, config)])
            made[text] = self._go_on(text, prompts, config, continues(self.name, text))
        return made

    def continues_worst(self, asked: Asked, starts: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Sequence[int]]]:
        """What it writes after the beginnings at ``starts`` of each text, by them."""
        config = asked.continuations
        made: dict[str, dict[int, Sequence[int]]] = {}
        for text, each in starts.items():
            title = continues_worst(self.name, text)
            if config is None or not each:
                unneeded(title)
                continue
            written = self._go_on(text, self.prompts(text, each, config), config, title)
            made[text] = dict(zip(each, written, strict=True))
        return made

    def prompts(self, text: str, starts: Sequence[int], config: ContinuationConfig) -> torch.Tensor:
        return prompts_at(self.tokens[text], starts, config, bos(self.reader))

    def _go_on(self, text: str, prompts: torch.Tensor, config: ContinuationConfig, title: str) -> Continuations:
        where = {"name": self.name, "text": source_name(text)}
        return writing.go_on(self.model, self.reader, prompts, config, title, **where)

    def answers(self, asked: Asked) -> Results | None:
        """What it reaches in the tasks; None where there are none."""
        if asked.tasks is None:
            return None
        from prunekit.evaluation.tasks.run import score_tasks

        identity = {
            "weights": self.source.fingerprint,
            "dtype": str(pick_dtype(self.dtype) or self.source.dtype),
            "device": pick_device(self.device).type,
        }
        return score_tasks(asked.tasks, lambda: self.model, self.tokenizer, name=self.name, identity=identity)


@dataclass(frozen=True)
class Said:
    """What the baseline said, without its weights: ``kept`` of texts that all models read alike, or as it ``read`` them
    by itself; what it wrote; its tasks."""

    kept: Kept | None
    read: Read | None
    written: Mapping[str, Continuations]
    tasks: Results | None


def baseline_said(dense: Turn, asked: Asked, apart: bool) -> Said:
    """All that is asked of the baseline, computed once; with ``apart`` it read the texts as tokens of its own."""
    kept = read = None
    if dense.tokens and apart:
        alone = perplexity.evaluate(dense.model, dense.reader, dense.tokens, asked.config, name=dense.name)
        read = Read(alone, dense.reader, dense.tokens)
    elif dense.tokens:
        kept = keep(dense.model, dense.tokens, asked.config, bos(dense.reader), dense.name)
    said = Said(kept, read, dense.continues(asked), dense.answers(asked))
    dense.release()
    return said


@dataclass(frozen=True)
class Unanswered:
    """Beginnings after which a model is farthest from the baseline, by the names of their texts, and what it made of
    them."""

    hard: Mapping[str, Sequence[Hard]]
    made: Mapping[str, Continuations]


def with_worst(
    found: Sequence[tuple[Measured, Unanswered]], everyone: Sequence[Turn], dense: Turn, asked: Asked
) -> tuple[Measured, ...]:
    """What was ``found`` of ``everyone``, with what they and ``dense`` write where they are farthest from it. It is
    loaded once more, for all of them."""
    starts = {
        text: sorted({each.start for _, left in found for each in left.hard.get(text, ())}) for text in dense.tokens
    }
    wanted = dense.continues_worst(asked, starts)
    dense.release()
    return tuple(
        replace(one, worst=_worst(own, left, wanted, asked)) for (one, left), own in zip(found, everyone, strict=True)
    )


def _worst(
    own: Turn, left: Unanswered, wanted: Mapping[str, Mapping[int, Sequence[int]]], asked: Asked
) -> tuple[WorstExample, ...]:
    config = asked.continuations
    if config is None:
        return ()
    shown: list[WorstExample] = []
    for text, hard in left.hard.items():
        if hard:
            prompts = own.prompts(text, [each.start for each in hard], config)
            shown += worst_examples(own.reader, prompts, hard, left.made[text], wanted[text], source_name(text))
    return tuple(shown)


def measured(own: Turn, dense: Turn | None, said: Said | None, asked: Asked) -> tuple[Measured, Unanswered]:
    """All that is asked of one model, beside what the baseline ``dense`` ``said``, but for what that would write where
    the two are farthest apart. That its outputs are no numbers is told, not raised."""
    if own.damage is not None:
        return _described(own, dense, asked, broken=own.damage), Unanswered({}, {})
    try:
        return _measured(own, dense, said, asked)
    except NotFinite as error:
        return _described(own, dense, asked, broken=pathless(str(error))), Unanswered({}, {})
    finally:
        own.release()


def _measured(own: Turn, dense: Turn | None, said: Said | None, asked: Asked) -> tuple[Measured, Unanswered]:
    report: Evaluation | None = None
    names = {"name": own.name, "baseline_name": dense.name if dense else "baseline"}
    config = asked.continuations
    kl_of: dict[str, torch.Tensor] = {}
    if own.tokens:
        kept = said.kept if said else None
        report = perplexity.evaluate(own.model, own.reader, own.tokens, asked.config, kept, kl_of=kl_of, **names)
        if said is not None and said.read is not None:
            report = compare_apart(Read(report, own.reader, own.tokens), said.read)
    wanted = said.written if said else {}
    generation: list[GenerationQuality] = []
    shown: list[Example] = []
    hard = {} if config is None else {text: hardest(kl, config) for text, kl in kl_of.items()}
    left: dict[str, Continuations] = {}
    for text, written in own.continues(asked, hard).items():
        assert config is not None
        label, made = source_name(text), written[: config.prompts]
        left[text] = written[config.prompts :]
        if not asked.glimpse:
            generation.append(writing.compare(made, config, wanted.get(text), text=label))
        shown += writing.examples(own.reader, own.tokens[text], config, made, wanted.get(text), text=label)
    answers = own.answers(asked)
    found = _described(
        own,
        dense,
        asked,
        texts=report,
        generation=tuple(generation),
        examples=tuple(shown),
        tasks=None if answers is None else _report(asked, answers, said, names),
    )
    return found, Unanswered(hard, left)


def _described(own: Turn, dense: Turn | None, asked: Asked, **found: Any) -> Measured:
    """What was ``found`` of a model, with what it is and where that was."""
    shape, record = own.source.shape, read_record(own.source.config)
    blocks = shape.block_parameters
    of_plan = record.share_of_blocks if record else None
    return Measured(
        own.name,
        dense.name if dense else None,
        str(pick_dtype(own.dtype) or own.source.dtype).removeprefix("torch."),
        str(pick_device(own.device)),
        shape.parameters,
        blocks / dense.source.shape.block_parameters if dense else of_plan,
        trainings(plan_of(own.source)),
        origin=_origin(own, dense, asked),
        **found,
    )


def _origin(own: Turn, dense: Turn | None, asked: Asked) -> dict[str, Any]:
    """What tells whether two results are of the same models, tokens and machine."""
    most = asked.config.max_tokens
    return {
        "fingerprint": own.source.fingerprint,
        "plan_sha256": plan_digest(own.source),
        "baseline_fingerprint": None if dense is None else dense.source.fingerprint,
        "token_ids_sha256": {text: token_ids_sha256(ids[:most].cpu().numpy()) for text, ids in own.tokens.items()},
        "machine": describe_machine(pick_device(own.device)),
    }


def _report(asked: Asked, own: Results, said: Said | None, names: dict[str, str]) -> TaskReport:
    from prunekit.evaluation.tasks.task_report import make_report

    assert asked.tasks is not None
    return make_report(asked.tasks, own, said.tasks if said else None, **names)
