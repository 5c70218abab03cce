"""Models on their turn: each is loaded when its weights are needed, and let go before the next one."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from prunekit.evaluation.continuations import Continuations, check_room, pick_prompts
from prunekit.evaluation.measured import Measured
from prunekit.evaluation.own_tokenizers import Read, compare_apart
from prunekit.evaluation.windows import EvalConfig, read_texts
from prunekit.models.source import load_model, pick_device, pick_dtype
from prunekit.utils.files.hashes import token_ids_sha256
from prunekit.utils.machine import describe_machine

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


@dataclass
class Turn:
    """A model on its turn: loaded when its weights are first asked for, and let go afterwards. ``tokens`` are the texts
    as ``reader`` gives them, int64 [n] by their names."""

    source: Source
    name: str
    tokenizer: Any
    dtype: str
    device: str
    reader: Any = None
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)

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

    def continues(self, asked: Asked) -> dict[str, Continuations]:
        """What it writes after the prompts of each text; nothing where that was not asked for."""
        if asked.continuations is None:
            return {}
        options: dict[str, Any] = {"config": asked.continuations, "name": self.name}
        return {
            text: writing.continued(self.model, self.reader, ids, text=source_name(text), **options)
            for text, ids in self.tokens.items()
        }

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

    name: str
    fingerprint: str
    block_parameters: int
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
    blocks = dense.source.shape.block_parameters
    said = Said(dense.name, dense.source.fingerprint, blocks, kept, read, dense.continues(asked), dense.answers(asked))
    dense.release()
    return said


def measured(own: Turn, dense: Said | None, asked: Asked) -> Measured:
    """All that is asked of one model, beside what the baseline said."""
    report: Evaluation | None = None
    names = {"name": own.name, "baseline_name": dense.name if dense else "baseline"}
    if own.tokens:
        kept = dense.kept if dense else None
        report = perplexity.evaluate(own.model, own.reader, own.tokens, asked.config, kept, **names)
        if dense is not None and dense.read is not None:
            report = compare_apart(Read(report, own.reader, own.tokens), dense.read)
    wanted = dense.written if dense else {}
    generation: list[GenerationQuality] = []
    shown: list[Example] = []
    for text, made in own.continues(asked).items():
        assert asked.continuations is not None
        label = source_name(text)
        generation.append(writing.compare(made, asked.continuations, wanted.get(text), text=label))
        shown += writing.examples(own.reader, own.tokens[text], asked.continuations, made, wanted.get(text), text=label)
    answers = own.answers(asked)
    own.release()
    shape, record = own.source.shape, read_record(own.source.config)
    blocks = shape.block_parameters
    return Measured(
        own.name,
        dense.name if dense else None,
        str(pick_dtype(own.dtype) or own.source.dtype).removeprefix("torch."),
        str(pick_device(own.device)),
        shape.parameters,
        blocks / dense.block_parameters if dense else record.share_of_blocks if record else None,
        trainings(plan_of(own.source)),
        report,
        tuple(generation),
        tuple(shown),
        None if answers is None else _report(asked, answers, dense, names),
        _origin(own, dense, asked),
    )


def _origin(own: Turn, dense: Said | None, asked: Asked) -> dict[str, Any]:
    """What tells whether two results are of the same models, tokens and machine."""
    most = asked.config.max_tokens
    return {
        "fingerprint": own.source.fingerprint,
        "plan_sha256": plan_digest(own.source),
        "baseline_fingerprint": None if dense is None else dense.fingerprint,
        "token_ids_sha256": {
            source_name(text): token_ids_sha256(ids[:most].cpu().numpy()) for text, ids in own.tokens.items()
        },
        "machine": describe_machine(pick_device(own.device)),
    }


def _report(asked: Asked, own: Results, dense: Said | None, names: dict[str, str]) -> TaskReport:
    from prunekit.evaluation.tasks.task_report import make_report

    assert asked.tasks is not None
    return make_report(asked.tasks, own, dense.tasks if dense else None, **names)
