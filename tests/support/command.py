"""The real command line, run in this process or in another, and what it must leave behind: nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunekit.cli import main
from prunekit.utils.phases import lines
from tests.support.tiny import tiny_model
from tests.support.tiny_text import tiny_tokenizer
from tests.support.warm import Warm

ROOT = Path(__file__).parents[2]
SENTENCE = "The quick brown fox jumps over the lazy dog while the others look on in quiet wonder. "

DEFAULT = "the default method"
"""Among a command's arguments: leave its method out."""


def set_options(**values: object) -> tuple[str, ...]:
    """``--set`` for each."""
    return tuple(part for name, value in values.items() for part in ("--set", f"{name}={value}"))


# Few and short sequences.
BRIEF = (*set_options(sequences=4, length=16), "--device", "cpu")
# And exact widths: a tiny model has no 64 channels to round to.
QUICK = (*BRIEF, *set_options(ffn_multiple=1))


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ended]


def with_method(arguments: tuple[object, ...]) -> list[str]:
    """Where a test names no method, it means one that takes a second: the default one draws curves and refits. And no
    result is checked that a test does not ask to be: that takes as long as all the rest of a tiny model."""
    told = [*map(str, arguments)]
    if told[:1] in (["prune"], ["recover"]) and not {"--check", "--max-loss-added", "--help"} & {*told}:
        told += ["--check", "none"]
    if told[:1] in (["plan"], ["prune"]) and not {"--method", "--plan", "--help", DEFAULT} & {*told}:
        told += ["--method", "adapt-pruner"]
    return [each for each in told if each != DEFAULT]


def make_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("plan", path, ...)`` runs prunekit's entry point in this process."""

    # However slow the machine is: a run is silent unless it is told to talk.
    monkeypatch.setattr(lines, "_SILENT", float("inf"))

    def command(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["prunekit", *with_method(arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            assert isinstance(stop.code, int), stop.code
            code = stop.code
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return command


def start(*arguments: object, code: str | None = None, **options: Any) -> Warm:
    """prunekit in a process of its own, with these ``options`` of it; ``code`` runs before its entry point."""
    lines = f"import sys; sys.argv[0] = 'prunekit'\n{code or ''}\nfrom prunekit.cli import main; main()"
    return Warm(lines, with_method(arguments), **options)


def run_apart(*arguments: object, code: str | None = None, **options: Any) -> Ended:
    """:func:`start`, and wait."""
    process = start(*arguments, code=code, **options)
    out, err = process.communicate(timeout=120)
    return Ended(process.wait(), out, err)


def save_tiny(folder: Path, model_type: str = "llama", *, tokenizer: Any = None, **fields: Any) -> Path:
    """A tiny checkpoint with a tokenizer of one token a character."""
    tiny_model(model_type, **fields).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def write_text(file: Path, characters: int = 4000) -> Path:
    """A text that differs from line to line, so that blocks do."""
    lines = [f"{number}. {SENTENCE}" for number in range(characters // len(SENTENCE) + 1)]
    file.write_text("\n\n".join(lines))
    return file


def listing(folder: Path) -> dict[str, int | None]:
    """Everything below ``folder``, hidden files too, with the sizes of files."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.stat().st_size for path in folder.rglob("*")}
