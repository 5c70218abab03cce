"""Rows that name their group: which group each sequence of a calibration text is of, and what a plan says of them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunekit.data.calibration import Calibration, CalibrationConfig, load_calibration
from prunekit.data.groups import MOST_GROUPS, OTHERS, groups_of_blocks, told_apart
from prunekit.data.mixture import Mixed, calibration_text
from prunekit.errors import PrunekitError
from tests.support.command import DEFAULT, Command, save_tiny, set_options
from tests.support.tiny import one_thread
from tests.support.tiny_text import tiny_tokenizer

LETTERS = {"billing": "a", "returns": "b", None: "c"}


def write_rows(path: Path, groups: list[Any], length: int = 30) -> Path:
    """A row for each group, whose letter it repeats."""
    rows = [
        {"topic": group, "text": LETTERS.get(group if isinstance(group, str) else None, "d") * length}
        for group in groups
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(path: Path, **fields: Any) -> Calibration:
    config = {"source": str(path), "sequences": 6, "length": 16, "group": "topic", **fields}
    return load_calibration(CalibrationConfig(**config), tiny_tokenizer())


def test_sequences_are_of_the_group_that_most_of_their_tokens_come_from(tmp_path: Path) -> None:
    # Groups take turns in the file, and rows are longer than a sequence: without order most would be of two.
    path = write_rows(tmp_path / "own.jsonl", ["billing", "returns", None] * 8)
    made = loaded(path, sequences=40)
    letters = {f"own.jsonl: {name or OTHERS}": letter for name, letter in LETTERS.items()}
    known = {letter: tiny_tokenizer()(letter, add_special_tokens=False)["input_ids"][0] for letter in "abc"}
    for row, name in zip(made.input_ids.tolist(), made.sources, strict=True):
        counts = Counter(row)
        # What stands before and after a document counts too.
        assert counts[known[letters[name]]] >= max(counts[token] for token in known.values()) - 1
    assert made.describe()["group"] == "topic" and sum(made.describe()["groups"].values()) == 40
    assert set(made.describe()["groups"]) == set(letters)
    plain = loaded(path, sequences=40, group=None)
    assert plain.sources == ("own.jsonl",) * 40 and "group" not in plain.describe()
    assert len(plain.blocks) == len(made.blocks)
    # A later draw has groups of its own.
    assert len(made.step(1).sources) == 40


def test_overlaps_decide() -> None:
    assert groups_of_blocks([("x", 5), ("y", 4), ("z", 7)], 4, 4) == ("x", "y", "z", "z")
    assert groups_of_blocks([("x", 2), ("y", 1), ("x", 1), ("y", 4)], 2, 4) == ("x", "y")
    assert groups_of_blocks([("x", 3)], 0, 4) == ()


def test_many_groups_are_few_names() -> None:
    tokens: dict[str | None, int] = {f"group {number}": 100 - number for number in range(20)}
    names = told_apart(tokens)
    assert len({*names.values()}) == MOST_GROUPS and names["group 0"] == "group 0" and names["group 19"] == OTHERS
    few = {"a": 1, "b": 2}
    assert told_apart(few) == {"a": "a", "b": "b"}
    exact: dict[str | None, int] = {f"group {number}": 1 for number in range(MOST_GROUPS)}
    assert OTHERS not in told_apart(exact).values()
    assert set(told_apart({**exact, None: 1}).values()) == {OTHERS, *(f"group {n}" for n in range(MOST_GROUPS - 1))}


@pytest.mark.parametrize("value", [None, {"a": 1}, ["x"]])
def test_rows_without_a_group_are_refused_where_none_has_one(tmp_path: Path, value: Any) -> None:
    path = write_rows(tmp_path / "own.jsonl", [value] * 9)
    with pytest.raises(PrunekitError, match=r"names a group in 'topic'\. The fields are topic, text\. Name another"):
        loaded(path)


def test_names_are_short_and_harmless(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", ["\x1b[31mred\n " + "x" * 99, 7, True] * 4)
    names = {name.partition(": ")[2] for name in loaded(path, sequences=20).sources}
    assert {"7", "True"} < names and max(map(len, names)) == 40 and not any("\x1b" in name for name in names)


def test_a_text_without_rows_has_no_groups(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words. " * 99)
    config = CalibrationConfig(source=str(tmp_path / "a.txt"), group="topic")
    with pytest.raises(PrunekitError, match=r"has no rows that could name a group in 'topic'; give a file of rows"):
        calibration_text(config, tiny_tokenizer(), None)  # type: ignore[arg-type]
    with pytest.raises(PrunekitError, match="must be named"):
        CalibrationConfig(group="")


def test_a_mix_has_the_groups_of_its_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", ["billing", "returns"] * 8)
    (tmp_path / "a.txt").write_text("some words. " * 99)
    source = f"{path}:0.5,{tmp_path / 'a.txt'}:0.5"
    config = CalibrationConfig(source=source, sequences=12, length=16, group="topic")
    made = calibration_text(config, tiny_tokenizer(), None)  # type: ignore[arg-type]
    assert isinstance(made, Mixed) and set(made.sources) == {"own.jsonl: billing", "own.jsonl: returns", "a.txt"}


def test_a_plan_says_which_group_pays(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    model = save_tiny(tmp_path / "tiny")
    path = write_rows(tmp_path / "own.jsonl", ["billing", "returns"] * 20)
    text = ("--calib", path, *set_options(calib_group="topic", sequences=24, length=16, ffn_multiple=1))
    words = (*text, "--device", "cpu", DEFAULT)
    with one_thread():
        done = command("plan", model, "--blocks", "0.8", *words, "-o", tmp_path / "plan.json", "--json")
        assert done.code == 0, done
        plan = json.loads((tmp_path / "plan.json").read_text())
        (layer, *_) = plan["provenance"]["why"]["layers"]
        assert set(layer["ffn"]["texts"]) == {"own.jsonl: billing", "own.jsonl: returns"}
        assert plan["recipe"]["calib_group"] == "topic"
        applied = ("--plan", tmp_path / "plan.json", "--calib", path, "-o", tmp_path / "out", "--device", "cpu")
        made = command("prune", model, *applied)
        assert made.code == 0, made
    told = json.loads((tmp_path / "out" / "plan.json").read_text())["provenance"]["calibration"]
    assert told["group"] == "topic" and sum(told["groups"].values()) == 24
    wrong = command("plan", model, "--blocks", "0.8", *words, *set_options(calib_group="team"))
    assert wrong.code == 2 and re.search(r"The fields are topic, text", wrong.err) and len(wrong.err.splitlines()) == 1


def test_a_field_that_differs_in_every_row_takes_no_long(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", list(range(50_000)), length=2)
    began = time.monotonic()
    made = loaded(path)
    assert {name.partition(": ")[2] for name in made.sources} <= {OTHERS, *map(str, range(MOST_GROUPS))}
    assert time.monotonic() - began < 30
