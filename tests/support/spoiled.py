"""A model, a plan and a checkpoint to spoil, and what holds for every refusal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.command import QUICK, Command, listing, save_tiny, write_text


@dataclass(frozen=True)
class Shared:
    """Made once: a model, a plan of it, its pruned checkpoint, and a text."""

    model: Path
    plan: Path
    pruned: Path
    text: Path


def make_shared(place: Path) -> Shared:
    """Everything in the folder ``place``."""
    made = Shared(save_tiny(place / "model"), place / "plan.json", place / "pruned", write_text(place / "text.txt"))
    with pytest.MonkeyPatch.context() as patch:
        from prunekit.cli import main

        arguments = ["prune", str(made.model), "-o", str(made.pruned), "--blocks", "0.7"]
        arguments += ["--calib", str(made.text), "--method", "adapt-pruner"]
        patch.setattr(sys, "argv", ["prunekit", *arguments, *QUICK, "--json"])
        main()
    shutil.copy(made.pruned / "plan.json", made.plan)
    return made


@dataclass(frozen=True)
class Place:
    """Where one case happens: an empty folder, and copies of what is shared."""

    here: Path
    shared: Shared

    @property
    def model(self) -> Path:
        """A copy that a case may spoil."""
        copy = self.here / "model"
        if not copy.exists():
            shutil.copytree(self.shared.model, copy)
        return copy

    @property
    def pruned(self) -> Path:
        copy = self.here / "pruned"
        if not copy.exists():
            shutil.copytree(self.shared.pruned, copy)
        return copy

    def config(self, **fields: Any) -> Path:
        return self._edit(self.model / "config.json", fields)

    def edited_plan(self, change: Callable[[dict[str, Any]], None]) -> Path:
        data = json.loads(self.shared.plan.read_text())
        change(data)
        return self.write("edited.json", json.dumps(data))

    def weights(self, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        file = self.model / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        return self.model

    def write(self, name: str, content: str | bytes) -> Path:
        file = self.here / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    @staticmethod
    def _edit(file: Path, fields: dict[str, Any]) -> Path:
        data = {**json.loads(file.read_text()), **fields}
        file.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))
        return file.parent

    def plan(self, *options: object, model: Path | str | None = None) -> list[object]:
        """A plan command that works, unless the options spoil it: the last word on an option counts."""
        start = ["plan", model or self.shared.model, "-o", self.here / "new.json", "--calib", self.shared.text, *QUICK]
        return [*start, *options]

    def prune(self, *options: object, model: Path | str | None = None) -> list[object]:
        return ["prune", model or self.shared.model, "-o", self.here / "new", *options]


def must_refuse(command: Command, folder: Path, arguments: list[object], parts: tuple[str, ...]) -> str:
    """Runs the command with and without --json and checks everything that holds for each refusal."""
    before = listing(folder)
    plain = command(*arguments)
    assert plain.code == 2, plain
    lines = plain.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("prunekit: "), plain.err
    message = lines[0].removeprefix("prunekit: ")
    assert message.endswith("."), message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert "Traceback" not in plain.err and plain.out == ""
    assert listing(folder) == before
    machine = command(*arguments, "--json")
    assert machine.code == 2
    assert machine.json == {"error": message}
    assert listing(folder) == before
    return message


def nan_in(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[7] = float("nan")

    return change
