"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.errors import PrunekitError
from prunekit.pipeline import recover
from prunekit.plan import Plan
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.training import state
from prunekit.recovery.training.sharding import shard, with_whole
from prunekit.utils.process import ranks
from tests.support.command import ROOT
from tests.support.ranks import run_ranks
from tests.support.recovering import SETTINGS, killed_before
from tests.support.tiny_training import tiny_pair, tiny_training


def _on(size: int, places: Path, out: Path, *, killed: int | None = None, **given) -> None:
    """A training on so many processes; where it is ``killed`` before a step, all of them are."""
    settings = {**SETTINGS, **given.pop("settings", {})}
    options = {
        "text": f"{places / 'text.txt'}:0.5,self:0.5",
        "tokens": 64 * 6,
        "device": "cpu",
        "dtype": "float32",
        **given,
    }

    def work() -> None:
        with nullcontext() if killed is None else killed_before(killed), ranks.joined("cpu"):
            recover(str(places / "small"), str(places / "dense"), out, settings=settings, **options)

    if size == 1:
        work()
        return
    ended = run_ranks(size, work)
    # The first that dies takes the others along.
    assert killed is not None or [each.code for each in ended] == [0] * size, ended


def _close(one: Path, other: Path) -> None:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    for name, expected in first.items():
        assert (second[name] - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item()), name


@pytest.mark.parametrize(
    "settings",
    [
        # One window a step: the second process has none.
        {"batch_tokens": 16},
        # Three, so that one process has two of them and the other one.
        {"batch_tokens": 48, "train": "all", "ce_share": 0.3, "micro_batch": 1, "recompute": True, "text_held_out": 5},
        {"batch_tokens": 48, "lora": 4, "learning_rate": 3e-3},
    ],
)
def test_two_processes_train_as_one_does(places: Path, tmp_path: Path, settings: dict) -> None:
    if "lora" in settings:
        pytest.importorskip("peft")
    for size in (1, 2):
        _on(size, places, tmp_path / str(size), settings=settings, tokens=6 * settings["batch_tokens"])
    _close(tmp_path / "1", tmp_path / "2")
    one, two = (Plan.load(tmp_path / name / "plan.json").provenance["recovery"][0] for name in "12")
    assert one["text"] == two["text"] and one["steps"] == two["steps"] == 6
    assert one["tokens"] == two["tokens"] == 6 * settings["batch_tokens"]
    assert two["held_out_kl"]["after"] == pytest.approx(one["held_out_kl"]["after"], rel=1e-4)
    assert two["held_out_kl"]["after"] < two["held_out_kl"]["before"]
    assert not (tmp_path / "2.training").exists()


def test_a_process_without_windows_has_gradients_of_zero() -> None:
    """Of a head that is not tied too, or the others would wait for it."""
    dense, pruned = tiny_pair(tied=False)
    config = TrainingConfig(learning_rate=1e-3, train="all", ce_share=0.5)

    def moved() -> torch.Tensor:
        training = tiny_training(dense, pruned, config, sequences=1, steps=2)
        training.run()
        return torch.cat([each.detach().flatten() for each in training.student.parameters.values()])

    expected = moved()

    def work() -> None:
        with ranks.joined("cpu"):
            assert (moved() - expected).abs().max() < 1e-5

    ended = run_ranks(2, work)
    assert [each.code for each in ended] == [0, 0], ended


def _last(training: Path) -> str:
    return sorted(each.name for each in training.glob("step-*"))[-1]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_spread_is_gathered_one_tensor_at_a_time(fails: bool) -> None:
    """On the first process alone; what goes wrong there is told to all."""

    def work() -> None:
        with ranks.joined("cpu"):
            model = tiny_pair()[1]
            expected = {name: each.clone() for name, each in model.state_dict().items()}
            shard(model)
            model.requires_grad_(False)
            seen: list[str] = []

            def use(groups) -> None:
                first, second = groups
                for name in reversed([*first]):
                    assert torch.equal(first[name], expected[name]) and name in first
                    seen.append(name)
                assert torch.equal(second["x"], torch.ones(2))
                if fails:
                    raise PrunekitError("the disk is full")

            with pytest.raises(PrunekitError, match="the disk is full") if fails else nullcontext():
                with_whole(use, model.state_dict(), {"x": torch.ones(2)})
            assert len(seen) == (len(expected) if ranks.is_first() else 0)

    ended = run_ranks(2, work)
    assert [each.code for each in ended] == [0, 0], ended


def test_two_processes_that_were_killed_go_on_bit_for_bit(places: Path, tmp_path: Path, monkeypatch) -> None:
    real, log = state.verify, tmp_path / "log"

    def verify(folder: Path):
        with log.open("a") as file:
            file.write(f"{ranks.rank()} reads {folder.name}")
        return real(folder)

    monkeypatch.setattr(state, "verify", verify)
    _on(2, places, tmp_path / "whole")
    _on(2, places, tmp_path / "out", checkpoint_minutes=0, killed=5)
    assert _last(tmp_path / "out.training") == "step-00000005"
    _on(2, places, tmp_path / "out", checkpoint_minutes=0)
    # The files are hashed once, and not by every process.
    assert log.read_text() == "0 reads step-00000005"
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_goes_on_on_any_number_of_processes(places: Path, tmp_path: Path) -> None:
    """Each window comes once, whoever reads it: three a step, so that two processes share them unevenly."""
    given = {"settings": {"batch_tokens": 48}, "tokens": 48 * 6, "checkpoint_minutes": 0}
    _on(1, places, tmp_path / "whole", **given)
    _on(1, places, tmp_path / "out", killed=2, **given)
    _on(2, places, tmp_path / "out", killed=4, **given)
    assert _last(tmp_path / "out.training") == "step-00000004"
    _on(1, places, tmp_path / "out", **given)
    _close(tmp_path / "whole", tmp_path / "out")
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "recovery.jsonl").read_text("utf-8").splitlines()]
        for name in ("whole", "out")
    )
    assert len(one) == len(other)
    assert all(mine == pytest.approx(its, rel=1e-4) for mine, its in zip(one, other, strict=True) if "step" in its)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_start_the_command_which_speaks_once(places: Path, tmp_path: Path, launcher: str) -> None:
    if launcher == "torchrun":
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    else:
        pytest.importorskip("accelerate")
        # Needs no GPU, though it is called so. With --cpu it starts one process, whatever number it is given.
        start = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        start += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # One sequence a step, so that one process has nothing to do.
    settings = {**SETTINGS, "batch_tokens": 16}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    asked = ["recover", places / "small", "--teacher", places / "dense", "--text", places / "text.txt"]
    asked += ["--tokens", 16 * 2, "--device", "cpu", "--check", "none", "-o", tmp_path / "out", *options]
    ended = subprocess.run(
        [sys.executable, "-m", *start, "-m", "prunekit", *map(str, asked)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Checkpoint written") == 1
    assert " ".join(ended.stderr.split()).count("and there are 2 processes, so some have nothing to do") == 1
    assert Plan.load(tmp_path / "out" / "plan.json").provenance["recovery"][0]["steps"] == 2
