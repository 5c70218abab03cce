"""The benchmarks' own JSONL files, turned into the columns that lm-eval's task definitions read.

A folder holds ``mmlu_test.jsonl`` and ``mmlu_dev.jsonl`` (subject, question, choices, answer), ``truthfulqa_mc.jsonl``
(question, mc1_targets, mc2_targets) and ``agieval/NAME.jsonl`` as AGIEval publishes them (passage, question, options,
label, answer), each of them gzipped (``.jsonl.gz``) or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.strict_json import parse
from prunekit.utils.files.text_stream import read_lines

Row = dict[str, Any]

_LETTERS = "ABCDEFG"
# AGIEval asks in the language of the exam, with or without choices: its convert_zero_shot, whose output is the `query`
# of the hub datasets hails/agieval-*.
_CHOICES = {
    "en": "{passage}Q: {question} Answer Choices: {options}\nA: Among A through {last}, the answer is",
    "zh": "{passage}问题：{question} 选项：{options}\n答案：从A到{last}, 我们应选择",
}
_CLOZE = {"en": "{passage}Q: {question}\nA: The answer is", "zh": "{passage}问题：{question}\n答案："}
_CHINESE = (
    "logiqa-zh",
    "jec-qa-kd",
    "jec-qa-ca",
    "gaokao-chinese",
    "gaokao-geography",
    "gaokao-history",
    "gaokao-biology",
    "gaokao-chemistry",
    "gaokao-physics",
    "gaokao-mathqa",
    "gaokao-mathcloze",
)


class MissingData(PrunekitError):
    """The folder has nothing to make this dataset from; the other datasets may still be there."""


class TaskData:
    """A folder of benchmark files, read when a task asks for them. Raises PrunekitError where there is no folder."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise PrunekitError(
                f"--task-data {folder} is no folder; give the one that holds the benchmarks' JSONL files."
            )
        self.folder = folder
        self._mmlu: dict[str, dict[str, list[Row]]] = {}

    def splits(self, dataset: str, name: str | None) -> dict[str, list[Row]]:
        """Rows by split in the columns of the hub dataset ``dataset`` (``name`` is its configuration).

        Raises MissingData where the folder can't provide them, PrunekitError where a line is broken.
        """
        if dataset == "cais/mmlu" and name:
            return {split: self._subject(split, name) for split in ("test", "dev")}
        if dataset.endswith("truthful_qa") and name == "multiple_choice":
            return {"validation": list(self._rows("truthfulqa_mc", _truthfulqa))}
        if dataset.endswith("truthful_qa"):
            raise MissingData("the local file has no reference answers to compare generated text with")
        if "agieval-" in dataset:
            exam = dataset.rsplit("agieval-", 1)[1]
            return {"test": list(self._rows(f"agieval/{exam}", lambda row: _agieval(row, exam)))}
        raise MissingData(f"{dataset} can't be made from local files")

    def _subject(self, split: str, subject: str) -> list[Row]:
        if split not in self._mmlu:
            subjects: dict[str, list[Row]] = {}
            for row in self._rows(f"mmlu_{split}", _mmlu):
                subjects.setdefault(row["subject"], []).append(row)
            self._mmlu[split] = subjects
        if subject not in self._mmlu[split]:
            raise MissingData(f"mmlu_{split}.jsonl has no question of the subject {subject}")
        return self._mmlu[split][subject]

    def _rows(self, stem: str, convert: Callable[[Row], Row | None]) -> Iterator[Row]:
        files = (self.folder / f"{stem}{ending}" for ending in (".jsonl", ".jsonl.gz"))
        path = next((file for file in files if file.is_file()), None)
        if path is None:
            raise MissingData(f"the folder has no {stem}.jsonl")
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            where = f"Line {number} of {path}"
            try:
                row = parse(line)
            except ValueError as error:
                raise PrunekitError(f"{where} is not valid JSON ({error}); mend or remove it.") from None
            try:
                if not isinstance(row, dict):
                    raise _Unfit("it is no JSON object")
                converted = convert(row)
                json.dumps(converted, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise PrunekitError(
                    f"{where} holds half a character (a lone surrogate), which no tokenizer takes; mend or remove it."
                ) from None
            except _Unfit as error:
                raise PrunekitError(f"{where} is no question of this benchmark: {error}; mend or remove it.") from None
            if converted is not None:
                yield converted


class _Unfit(Exception):
    """A row lacks a field, or holds something else in it."""


def _field(row: Row, name: str, fits: Callable[[Any], bool], what: str) -> Any:
    value = row.get(name)
    if not fits(value):
        raise _Unfit(f"{name} must be {what}")
    return value


def _text(row: Row, name: str) -> str:
    text: str = _field(row, name, lambda value: isinstance(value, str), "a text")
    return text


def _texts(row: Row, name: str) -> list[str]:
    texts: list[str] = _field(
        row,
        name,
        lambda value: (
            isinstance(value, list) and len(value) > 1 and all(isinstance(each, str) and each for each in value)
        ),
        "a list of texts",
    )
    return texts


def _mmlu(row: Row) -> Row:
    choices = _texts(row, "choices")
    if len(choices) != 4:
        raise _Unfit("choices must be four")
    answer = _field(
        row, "answer", lambda value: type(value) is int and 0 <= value < 4, "the position of the right choice, 0 to 3"
    )
    return {
        "question": _text(row, "question"),
        "subject": _text(row, "subject"),
        "choices": choices,
        "answer": answer,
    }


def _truthfulqa(row: Row) -> Row:
    return {
        "question": _text(row, "question"),
        **{name: _targets(row, name) for name in ("mc1_targets", "mc2_targets")},
    }


def _targets(row: Row, name: str) -> dict[str, list[Any]]:
    labels: dict[str, int] = _field(
        row,
        name,
        lambda value: (
            isinstance(value, dict)
            and all(value)
            and all(isinstance(each, int) for each in value.values())
            and {0, 1} == set(value.values())
        ),
        "an object of answers, each 1 (true) or 0 (false), with some of both",
    )
    # lm-eval takes the first choice of mc1 as the right one.
    answers = sorted(labels.items(), key=lambda item: -item[1])
    return {"choices": [answer for answer, _ in answers], "labels": [int(label) for _, label in answers]}


def _agieval(row: Row, exam: str) -> Row | None:
    language = "zh" if exam in _CHINESE else "en"
    parts = {"passage": row.get("passage") or "", "question": _text(row, "question")}
    if row.get("options") is None:
        return {"query": _CLOZE[language].format(**parts), "answer": _text(row, "answer")}
    options = _texts(row, "options")
    if len(options) > len(_LETTERS):
        raise _Unfit(f"options must be at most {len(_LETTERS)}")
    query = _CHOICES[language].format(**parts, options=" ".join(options), last=_LETTERS[len(options) - 1])
    gold = _gold(row, len(options))
    return None if gold is None else {"query": query, "choices": options, "gold": gold}


def _gold(row: Row, count: int) -> list[int] | None:
    """Positions of the right options: some questions have several, as a list or as "AD" or "A D".

    As in the hub's copy, the question of jec-qa-ca that has a full stop for a label is left out (None), and the one of
    jec-qa-kd that has no right option stays.
    """
    label = row.get("label")
    if label == []:
        return []
    letters = re.sub(r"[\s,]", "", "".join(map(str, label)) if isinstance(label, list) else str(label))
    if "。" in letters:
        return None
    gold = [_LETTERS[:count].find(letter) for letter in letters]
    if not gold or -1 in gold:
        raise _Unfit(f"label must name options by letters from A to {_LETTERS[count - 1]}")
    return gold
