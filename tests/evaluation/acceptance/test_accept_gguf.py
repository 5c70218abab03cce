"""`prunekit accept` of the GGUF file that is served: an export that went wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from prunekit.evaluation.acceptance.asked.answers import Answer
from prunekit.evaluation.acceptance.asked.local_model import LocalModel
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.records import Record, read_records
from prunekit.evaluation.acceptance.run import accept
from prunekit.evaluation.acceptance.verdict import ACCEPTED, REFUSED
from prunekit.models.source import resolve
from tests.support.tiny_gguf import write_tiny_gguf

COUNT, TOKENS = 20, 4


def write_records(file: Path, answers: list[str]) -> Path:
    rows = [
        {"prompt": f"w1x{at}", "check": "exact", "reference": answer, "max_tokens": TOKENS}
        for at, answer in enumerate(answers)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_broken_export_is_refused(tmp_path: Path) -> None:
    good = write_tiny_gguf(tmp_path / "dense.gguf")
    # The same model, and one whose last weights are in the wrong order.
    same, broken = tmp_path / "same.gguf", tmp_path / "broken.gguf"
    data = good.read_bytes()
    same.write_bytes(data)
    broken.write_bytes(data[:-24576] + np.frombuffer(data[-24576:], np.float32)[::-1].tobytes())
    answers: dict[str, str] = {}

    def told(record: Record, answer: Answer) -> None:
        answers[record.id] = answer.text

    asked = read_records(write_records(tmp_path / "asked.jsonl", ["?"] * COUNT)).all
    model = LocalModel(resolve(str(good)), dtype="float32", device="cpu", batch_size=COUNT)
    model.keys(asked, TOKENS)
    model.ask(asked, {*range(COUNT)}, TOKENS, told, 0)
    records = write_records(tmp_path / "records.jsonl", [answers[each.id] for each in asked])
    verdicts = {
        file.stem: accept(
            str(file), baseline=str(good), records=records, out=tmp_path / file.stem, policy=Policy(margin=0.3)
        ).verdict
        for file in (same, broken)
    }
    assert verdicts["same"].word == ACCEPTED and verdicts["same"].exit_code == 0
    assert verdicts["broken"].word == REFUSED and verdicts["broken"].exit_code == 3
