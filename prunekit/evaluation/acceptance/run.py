"""Whether a smaller model does a company's own records as well as the model it was made from."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.asked.answers import NAME as ANSWERS
from prunekit.evaluation.acceptance.asked.answers import Answer, AnswerFile, answer_file
from prunekit.evaluation.acceptance.asked.candidate import Candidate
from prunekit.evaluation.acceptance.asked.remote_model import LIMITS, RemoteModel, is_endpoint
from prunekit.evaluation.acceptance.checks.judging import judge, look_at
from prunekit.evaluation.acceptance.compared import Compared, Outcome, compare
from prunekit.evaluation.acceptance.other_files import conditions_of
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.records import MOST_TOKENS, Record, Records, read_records
from prunekit.evaluation.acceptance.result import NAME, Acceptance, worst_of
from prunekit.evaluation.acceptance.verdict import decide
from prunekit.evaluation.phases import answers as answering
from prunekit.utils.endpoints.about import check_two
from prunekit.utils.endpoints.endpoint import Endpoint
from prunekit.utils.files.atomic import check_output_file, write_text
from prunekit.utils.files.replacing import local
from prunekit.utils.phases.telling import keeping, phases
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.models.source import Source

TOKENS, BATCH = 128, 8
"""New tokens an answer, and answers at a time, unless told otherwise."""
_WHAT = "accept"
_NOT_ASKED = "not asked: too many records before it failed"


def accept(
    smaller: Source | Endpoint | str,
    *,
    baseline: Source | Endpoint | str,
    records: str | Path,
    policy: Policy | str | Path | None = None,
    out: str | Path = "acceptance",
    max_new_tokens: int = TOKENS,
    batch_size: int = BATCH,
    show_texts: bool = False,
    served_name: str | None = None,
    baseline_served_name: str | None = None,
    api_key_env: str | None = None,
    answer_timeout: float = LIMITS.total,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    baseline_revision: str | None = None,
    overwrite: bool = False,
) -> Acceptance:
    """Ask both models all ``records`` (a JSONL file), judge their answers, and decide by the ``policy`` (a TOML file)
    whether the ``smaller`` one may take the place of the ``baseline``, as `prunekit accept` does it.

    A model is a folder, a .gguf file, a hub id, the built-in name, or the address of a server (``http://…``). Answers
    are greedy, of at most ``max_new_tokens`` tokens where a record has no limit of its own, ``batch_size`` at a time.
    The folder ``out`` gets `accept.json`, and `answers.jsonl` while answers come: after an interruption the same call
    asks only what is missing. A server is asked for the model ``served_name`` (``baseline_served_name``), else for the
    first that it lists, with the API key in the environment variable ``api_key_env``, and given ``answer_timeout``
    seconds for each answer. ``show_texts`` puts prompts and answers of the worst records into the result.

    Raises PrunekitError where records or policy are broken, or a model can't be had; an endpoint that fails later
    counts as failures of its records.

    >>> found = accept("smaller", baseline="smollm2-135m", records="records.jsonl")  # doctest: +SKIP
    >>> found.accepted, found.everything.error_rate.value  # doctest: +SKIP
    (False, 0.185)
    """
    began = time.perf_counter()
    _check_number("--max-new-tokens", max_new_tokens, MOST_TOKENS)
    _check_number("--batch-size", batch_size, 4096)
    if not 0 < answer_timeout < math.inf:
        raise PrunekitError(f"--answer-timeout is in seconds, above 0, got {answer_timeout:g}.")
    used = policy if isinstance(policy, Policy) else Policy() if policy is None else Policy.load(policy)
    out, file = Path(out), Path(records)
    named = [each if isinstance(each, str) else str(getattr(each, "path", "")) for each in (smaller, baseline)]
    _check_out(out, overwrite, local(*named, file, policy if isinstance(policy, str | Path) else None))
    read = read_records(file)
    _check_groups(used, read)
    look_at(read.all)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size, "api_key_env": api_key_env}
    options["answer_timeout"] = answer_timeout
    pair = [
        _candidate(smaller, revision=revision, served_name=served_name, **options),
        _candidate(baseline, revision=baseline_revision, served_name=baseline_served_name, **options),
    ]
    if isinstance(pair[0], RemoteModel) and isinstance(pair[1], RemoteModel):
        check_two(pair[0].endpoint, pair[1].endpoint)
    others = conditions_of(used, pair[0].identity)
    names = _apart(pair)
    # Before anything is written: records that do not suit a model are refused here.
    keys = [each.keys(read.all, max_new_tokens) for each in pair]
    with answer_file(out) as kept, phases(*map(answering, names)):
        allowed = _most_failed(used, len(read.all))
        turns = [_Turn(*each, read.all, max_new_tokens) for each in zip(pair, names, keys, strict=True)]
        made = [turn.all(kept, allowed) for turn in turns]
        outcomes = _outcomes(read.all, *made)
        result = _result(outcomes, read, used, pair, others, show_texts)
        run = {
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "asked": {name: turn.asked for name, turn in zip(("smaller", "baseline"), turns, strict=True)},
            "kept": {name: turn.kept for name, turn in zip(("smaller", "baseline"), turns, strict=True)},
            "seconds": round(time.perf_counter() - began, 3),
            **_machine(pair),
        }
        result = replace(result, given=policy is not None, run=run, path=out / NAME)
        write_text(out / NAME, result.to_json(), overwrite, what=_WHAT)
        kept.end()
    return result


def _check_number(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise PrunekitError(f"{name} must be a whole number from 1 to {most:,}, got {value!r}.")


def _check_out(out: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Raises PrunekitError, before any work, where the results can't be written to the folder ``out``."""
    if out.exists() and not out.is_dir():
        raise PrunekitError(f"{out} is a file; give the name of a folder to write.")
    for each in inputs:
        if each.resolve() in ((out / NAME).resolve(), (out / ANSWERS).resolve()):
            raise PrunekitError(f"{each} is read by this very run, and would be written by it; choose another -o.")
    if out.is_dir():
        check_output_file(out / NAME, overwrite, what=_WHAT)


def _most_failed(policy: Policy, count: int) -> int:
    """How many of ``count`` records may fail: 0.29 of 100 are 29, though the product is a little below."""
    return math.floor(policy.max_failed * count + 1e-9)


def _check_groups(policy: Policy, read: Records) -> None:
    for name in policy.groups:
        if name not in read.groups:
            there = ", ".join(read.groups[:20]) or "none"
            raise PrunekitError(
                f"The policy has limits for the group {name!r}, and no record is in it; there are: {there}."
            )


def _candidate(
    model: Source | Endpoint | str,
    *,
    revision: str | None,
    served_name: str | None,
    dtype: str,
    device: str,
    batch_size: int,
    api_key_env: str | None,
    answer_timeout: float,
) -> Candidate:
    if isinstance(model, str) and is_endpoint(model):
        model = Endpoint(model, served_name, api_key_env)
    if isinstance(model, Endpoint):
        return RemoteModel(
            model,
            concurrency=batch_size,
            limits=replace(LIMITS, first=min(LIMITS.first, answer_timeout), total=answer_timeout),
        )
    from prunekit.evaluation.acceptance.asked.local_model import LocalModel
    from prunekit.models.source import as_source

    source = as_source(model, revision=revision)
    return LocalModel(source, dtype=dtype, device=device, batch_size=batch_size)


def _apart(pair: Sequence[Candidate]) -> list[str]:
    """What both are called in lines of progress."""
    first, second = (each.name for each in pair)
    return [first, second if first != second else f"{second} (baseline)"]


@dataclass
class _Turn:
    """A model on its turn: ``asked`` counts the answers that it gave in this run, ``kept`` those that were there."""

    candidate: Candidate
    name: str
    keys: Sequence[str]
    records: Sequence[Record]
    most: int
    asked: int = 0
    kept: int = 0

    def all(self, file: AnswerFile, failures: int) -> list[Answer]:
        """The answers to all records."""
        keys = self.keys
        made = self.candidate.kept(file, keys)
        place = {each.id: at for at, each in enumerate(self.records)}
        # Records that ask the same share an answer.
        firsts: dict[str, int] = {}
        for at, key in enumerate(keys):
            if made[at] is None:
                firsts.setdefault(key, at)
        self.kept = sum(each is not None for each in made)
        total = len(self.records)
        with progress(answering(self.name), total) as advance:
            advance(self.kept, kept=True)
            # Those that ask what another record asks.
            advance(total - len(firsts) - self.kept)

            def told(record: Record, answer: Answer) -> None:
                at = place[record.id]
                made[at] = answer
                self.asked += 1
                if answer.error is None:
                    file.add(keys[at], answer)
                    keeping(f"answers of {self.name}", self.kept + self.asked, total)
                advance(1)

            self.candidate.ask(self.records, {*firsts.values()}, self.most, told, failures)
        missing = Answer(error=_NOT_ASKED)
        return [answer or made[firsts[key]] or missing for answer, key in zip(made, keys, strict=True)]


def _outcomes(records: Sequence[Record], made: Sequence[Answer], wanted: Sequence[Answer]) -> list[Outcome]:
    judged = [_judged(records, answers) for answers in (made, wanted)]
    return [Outcome(*each) for each in zip(records, made, wanted, *judged, strict=True)]


def _judged(records: Sequence[Record], answers: Sequence[Answer]) -> list[bool | None]:
    made: list[bool | None] = [None] * len(records)
    there = [place for place, answer in enumerate(answers) if answer.error is None]
    verdicts = judge([records[place].check for place in there], [answers[place].text for place in there])
    for place, verdict in zip(there, verdicts, strict=True):
        made[place] = verdict
    return made


def _result(
    outcomes: Sequence[Outcome], read: Records, policy: Policy, pair: Sequence[Candidate], others: Any, show_texts: bool
) -> Acceptance:
    unit = _unit(outcomes, pair)
    options: dict[str, Any] = {"alpha": policy.alpha, "power": policy.power, "unit": unit}
    everything = compare(outcomes, margin=policy.margin, **options)
    groups: dict[str, Compared] = {}
    for name in read.groups:
        limits = policy.groups.get(name)
        inside = [each for each in outcomes if each.record.group == name]
        groups[name] = compare(inside, margin=None if limits is None else limits.margin, **options)
    return Acceptance(
        decide(policy, everything, groups, others),
        everything,
        groups,
        worst_of(outcomes, unit, show_texts=show_texts),
        policy,
        given=False,
        smaller=pair[0].identity,
        baseline=pair[1].identity,
        records={"count": len(read.all), "sha256": read.sha256, "weighted": read.weighted},
        run={},
    )


def _unit(outcomes: Sequence[Outcome], pair: Sequence[Candidate]) -> str:
    """What lengths are counted in: tokens where both models are known to count the same ones, else characters. Of
    servers nothing is known of the tokenizer."""
    from prunekit.evaluation.acceptance.asked.local_model import LocalModel
    from prunekit.models.tokenizer.same_tokens import first_difference

    first, second = pair
    if not (isinstance(first, LocalModel) and isinstance(second, LocalModel)):
        return "characters"
    answers = [each for outcome in outcomes for each in (outcome.answer, outcome.baseline) if each.error is None]
    counted = all(each.tokens is not None for each in answers)
    same = counted and first_difference(first.tokenizer, second.tokenizer) is None
    return "tokens" if same else "characters"


def _machine(pair: Sequence[Candidate]) -> dict[str, Any]:
    from prunekit.utils.machine import describe_machine
    from prunekit.utils.provenance import versions

    device = next((each.identity["device"] for each in pair if "device" in each.identity), "cpu")
    return {"machine": describe_machine(device), "versions": versions()}
