"""What texts are called in reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.data.sources import source_name, text_labels


@pytest.mark.parametrize("name", ["builtin", "wikitext", "self"])
def test_a_file_is_not_taken_for_a_text_that_everybody_has(name: str, tmp_path: Path) -> None:
    """A report shows completions of public texts, and of others only where that was asked for."""
    (tmp_path / name).write_text("private")
    assert source_name(str(tmp_path / name)) == f"./{name}" == source_name(f"./{name}")
    assert source_name(name) == name


def test_files_of_one_name_have_numbers() -> None:
    texts = ["a/held.jsonl", "builtin", "b/held.jsonl", "a/held.jsonl", "c/held.jsonl", "org/data:part"]
    made = ["held.jsonl", "builtin", "held.jsonl (2)", "held.jsonl", "held.jsonl (3)", "org/data:part"]
    assert text_labels(texts) == made
    assert [source_name(each) for each in made] == made
