"""Commands on two ranks come to what they come to in one process, and only the first rank writes and speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunekit.errors import PrunekitError
from prunekit.pruning.importance import scoring
from prunekit.utils.process import ranks
from tests.support.command import DEFAULT, ROOT, Ended, listing, save_tiny, set_options, write_text
from tests.support.ranks import command_on_ranks

# Batches that two ranks and three share unevenly.
TEXT = set_options(sequences=10, length=16, batch_size=2, ffn_multiple=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 12_000)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One for each number of ranks: what one run keeps, another would find.
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def on(size: int, *arguments: object) -> list[Ended]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", f"{os.environ['PRUNEKIT_CACHE']}-{size}")
        return command_on_ranks(size, *arguments, "--device", "cpu")


def well(ended: list[Ended]) -> Ended:
    """How the first of ranks ended, which has all been said by."""
    assert [each.code for each in ended] == [0] * len(ended), ended
    assert [each.out + each.err for each in ended[1:]] == [""] * (len(ended) - 1)
    return ended[0]


def plans(sizes: tuple[int, ...], model: Path, folder: Path, *arguments: object) -> list[str]:
    """The plans that ``sizes`` ranks make."""
    for size in sizes:
        well(on(size, "plan", model, "-o", folder / f"{size}.json", "--blocks", "0.7", *arguments))
    return [(folder / f"{size}.json").read_text() for size in sizes]


@pytest.mark.parametrize("method", ["adapt-pruner", "fisher-global", "flap", "minitron"])
def test_a_plan_is_that_of_one_process(model: Path, text: Path, tmp_path: Path, method: str) -> None:
    brief = set_options(steps=6) if method == "adapt-pruner" else ()
    one, three = plans((1, 3), model, tmp_path, "--method", method, "--calib", text, *TEXT, *brief)
    assert one == three


def test_more_ranks_than_batches(model: Path, text: Path, tmp_path: Path) -> None:
    few = set_options(sequences=4, length=16, batch_size=4, ffn_multiple=1, steps=3)
    asked = ("plan", model, "--blocks", "0.7", "--calib", text, *few)
    one, two = (well(on(size, *asked, "-o", tmp_path / f"{size}.json")) for size in (1, 2))
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    assert one.err == "" and "The text makes 1 batch for 2 processes" in two.err


def test_a_loss_curve_is_that_of_one_process_to_the_last_unit(model: Path, text: Path, tmp_path: Path) -> None:
    """Text that the model writes, curves, their scale, and sub-layers that go as a whole."""
    units = set_options(units="ffn,kv,query,attention-layer")
    asked = (DEFAULT, "--calib", f"{text}:0.5,self:0.5", *TEXT, *units)
    one, two, three = plans((1, 2, 3), model, tmp_path, *asked)
    assert one == two == three
    caches = [tmp_path / f"cache-{size}" for size in (1, 2, 3)]
    assert listing(caches[0]) == listing(caches[1]) == listing(caches[2])


def test_ranks_draw_the_curves_that_are_missing(model: Path, text: Path, tmp_path: Path) -> None:
    """Three layers for two ranks: one has nothing to draw at last."""
    asked = (DEFAULT, "--calib", text, *TEXT)
    (whole,) = plans((2,), model, tmp_path, *asked)
    files = {index: next((tmp_path / "cache-2").rglob(f"layer-{index}.json")) for index in range(4)}
    written = {index: (file.read_text(), file.stat().st_mtime_ns) for index, file in files.items()}
    for index in (0, 2, 3):
        files[index].unlink()
    # As an ended run of one process leaves them.
    sums = files[0].with_name("fisher-2-0.safetensors")
    sums.write_bytes(b"")
    again = tmp_path / "again"
    again.mkdir()
    assert plans((2,), model, again, *asked) == [whole]
    assert {index: file.read_text() for index, file in files.items()} == {i: said for i, (said, _) in written.items()}
    assert files[1].stat().st_mtime_ns == written[1][1]
    assert not sums.exists()


def test_refitted_and_rescaled_weights_are_those_of_one_process(model: Path, text: Path, tmp_path: Path) -> None:
    asked = (DEFAULT, "--calib", text, *TEXT, *set_options(sequences=20, rescale_batch_size=3))
    for size in (1, 2):
        well(on(size, "prune", model, "-o", tmp_path / f"made-{size}", "--blocks", "0.7", *asked))
    one, two = (tmp_path / f"made-{size}" for size in (1, 2))
    assert (one / "plan.json").read_text() == (two / "plan.json").read_text()
    assert [*listing(one)] == [*listing(two)]
    first, second = (load_file(each / "model.safetensors") for each in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor - second[name]).norm() <= 1e-5 * tensor.norm(), name


def test_biases_and_turned_weights_are_those_of_one_process(model: Path, text: Path, tmp_path: Path) -> None:
    for method in ("flap", "slicegpt"):
        made = []
        for size in (1, 2):
            out = tmp_path / f"{method}-{size}"
            asked = ("--params" if method == "slicegpt" else "--blocks", "0.8", "--method", method, "--calib", text)
            settings = set_options(sequences=10, length=16, batch_size=2)
            well(on(size, "prune", model, "-o", out, *asked, *settings))
            made.append(load_file(out / "model.safetensors"))
        for name, tensor in made[0].items():
            # An axis may point the other way.
            assert torch.allclose(tensor.abs(), made[1][name].abs(), rtol=1e-4, atol=1e-5), name


def test_an_analysis_is_that_of_one_process(model: Path, text: Path, tmp_path: Path) -> None:
    made = []
    for size in (1, 2):
        out = tmp_path / f"{size}.json"
        asked = ("--layer-importance", "loss", "--calib", text, *set_options(sequences=10, length=16, batch_size=2))
        ended = well(on(size, "analyze", model, "-o", out, "--json", *asked))
        assert ended.json == json.loads(out.read_text())
        made.append(ended.json)
    assert made[0] == made[1]


def test_ranks_share_out_the_batches(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, log = scoring._run, tmp_path / "log"

    def run(watched: Any, needs: Any, batch: torch.Tensor, layers: object) -> float:
        with log.open("a") as file:
            file.write(f"{ranks.rank()}:{len(batch)} ")
        return real(watched, needs, batch, layers)

    monkeypatch.setattr(scoring, "_run", run)
    out = tmp_path / "analysis.json"
    well(on(2, "analyze", model, "-o", out, "--calib", text, *set_options(sequences=9, length=16, batch_size=2)))
    assert sorted(log.read_text().split()) == ["0:1", "0:2", "0:2", "1:2", "1:2"]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_rank_ends_all(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    real = scoring._run

    def run(*arguments: Any) -> float:
        if ranks.rank() == failing:
            raise PrunekitError("Layer 2: its output is not finite.")
        return real(*arguments)

    monkeypatch.setattr(scoring, "_run", run)
    ended = on(2, "plan", model, "-o", tmp_path / "plan.json", "--blocks", "0.7", "--calib", text, *TEXT)
    assert [each.code for each in ended] == [2, 2]
    assert [each.err for each in ended] == ["prunekit: Layer 2: its output is not finite.\n", ""]
    assert not (tmp_path / "plan.json").exists()


def test_bad_input_is_told_once(model: Path, text: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    out = tmp_path / "made"
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("already exists", (model, "-o", taken, "--blocks", "0.7")),
        ("There is no method", (model, "-o", out, "--blocks", "0.7", "--method", "flep")),
        ("--help", (model, "-o", out, "--blocks", "0.7", "--no-such-option")),
        ("out of reach", (model, "-o", out, "--blocks", "0.01", "--calib", text, *TEXT)),
        ("does not exist", (model, "-o", out, "--blocks", "0.7", "--calib", tmp_path / "none.txt")),
    ]
    for words, arguments in cases:
        ended = on(2, "prune", *arguments, "--json")
        assert [each.code for each in ended] == [2, 2], ended
        assert words in ended[0].err and ended[0].err.count("\n") == 1
        assert ended[0].json["error"] in ended[0].err
        assert ended[1].out + ended[1].err == ""
    assert [*taken.iterdir()] == [] and not out.exists()


def test_a_command_of_one_process_runs_once() -> None:
    first, second = command_on_ranks(2, "methods")
    assert (first.code, second.code) == (0, 0)
    assert "adapt-pruner" in first.out and "`prunekit methods` is the work of one process" in first.err
    assert second.out + second.err == ""


def test_torchrun_prunes(model: Path, text: Path, tmp_path: Path) -> None:
    """The real launcher, which finds a free port by itself."""
    asked = ("prune", model, "--blocks", "0.7", "--method", "adapt-pruner", "--calib", text, *TEXT, "--device", "cpu")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    made = [*launcher, "-m", "prunekit", *map(str, asked), "-o", str(tmp_path / "two")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(made, capture_output=True, text=True, cwd=ROOT, env=one_thread, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Checkpoint written to") == 1
    well(on(1, *asked[:-2], "-o", tmp_path / "one"))
    assert (tmp_path / "one" / "plan.json").read_text() == (tmp_path / "two" / "plan.json").read_text()
