"""The command line end to end on tiny models: JSON for machines, tables for people, the same result every time."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunekit.checkpoint.rebuild import rebuild
from prunekit.models.source import load_model, resolve
from prunekit.plan import Plan
from prunekit.plan.methods import METHODS
from prunekit.pruning.allocation import ALLOCATION
from prunekit.pruning.importance.base import IMPORTANCE
from tests.support.command import BRIEF, QUICK, Command, make_command, run_apart, save_tiny, start, write_text
from tests.support.tiny import MODEL_TYPES, one_thread, random_plan

COMMANDS = ("analyze", "plan", "prune", "methods", "inspect", "eval", "bench", "latency-table", "demo")
ANSI = re.compile(r"\x1b\[")


@pytest.fixture(scope="module", autouse=True)
def _one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Level databases of models that nobody will see again.
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return make_command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("cli") / "tiny-llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 12_000)


def succeed(command: Command, *arguments: object) -> Any:
    """Runs with --json: exit code 0, one JSON object on stdout, and silence on stderr, where no terminal is."""
    done = command(*arguments, "--json")
    assert done.code == 0, done
    assert done.err == "" and not ANSI.search(done.out)
    return done.json


def logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return load_model(resolve(str(folder)), dtype="float32", device="cpu")(ids).logits


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}


def test_help_is_complete_and_starts_without_torch() -> None:
    """Three seconds are ten times what it takes; importing torch would take more."""
    told = "'torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT')"
    code = f"import atexit, os, sys; atexit.register(lambda: print({told})); sys.argv[0] = 'prunekit'\n"
    code += "from prunekit.cli import main; main()"
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == "" and time.monotonic() - begun < 3
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", done.stdout), name
    # What PyTorch's threads are told when it is imported later.
    assert done.stdout.rstrip().endswith("False 10000")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name: str, command: Command) -> None:
    done = command(name, "--help")
    assert done.code == 0 and done.err == "" and "--json" in done.out
    # No option is left without a sentence beside it.
    from typer.main import get_command

    from prunekit.cli import app

    for option in get_command(app).commands[name].params:  # type: ignore[attr-defined]
        assert getattr(option, "help", None) or option.name == "help", (name, option.name)


def test_no_command_shows_the_help(command: Command) -> None:
    done = command()
    assert done.code == 2 and "analyze" in done.out + done.err and "Traceback" not in done.err


def test_analyze(command: Command, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("--calib", text, "--set", "sequences=4", "--set", "length=16", "--device", "cpu")
    report = tmp_path / "report.json"
    data = succeed(command, "analyze", model, *settings, "-o", report, "--picture", tmp_path / "layers.svg")
    assert data == json.loads(report.read_text())
    assert sorted(layer["rank"] for layer in data["layers"]) == [0, 1, 2, 3]
    best = max(data["layers"], key=lambda layer: layer["importance"])
    assert best["rank"] == 0 and best["words"].startswith("matters most")
    # Four sequences are just enough to draw them again by chance.
    assert 0 < data["kendall_tau"] <= 1 and "Kendall's tau" in data["summary"]
    for layer in data["layers"]:
        assert 0 <= layer["rank_low"] <= layer["rank"] <= layer["rank_high"] <= 3
    assert data["tokens"] == 64 and data["model"] == "tiny-llama" and str(tmp_path) not in report.read_text()
    assert "<svg" in (tmp_path / "layers.svg").read_text()
    monkeypatch.chdir(tmp_path)
    shown = command("analyze", model, *settings)
    assert shown.code == 0 and shown.err == "" and not ANSI.search(shown.out)
    assert (tmp_path / "analysis.json").read_text() == report.read_text()
    assert (tmp_path / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert "importance of its layers" in shown.out and data["summary"][:30] in shown.out


def test_plan_then_prune_then_inspect(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "pruned"
    planned = succeed(command, "plan", model, "-o", file, "--blocks", "0.7", "--calib", text, *QUICK)
    plan = Plan.load(file)
    assert planned["plan"] == str(file)
    assert planned["pruned"]["parameters"] == plan.shape.parameters < planned["dense"]["parameters"]
    assert planned["share_of_blocks"] == plan.share_of_blocks <= 0.7
    assert planned["dense"]["weight_bytes"] == 4 * planned["dense"]["parameters"]
    written = succeed(command, "prune", model, "--plan", file, "-o", out)
    assert written["layers"] == planned["layers"] and written["layout"] == "per-layer"
    seen = succeed(command, "inspect", out)
    assert seen["parameters"] == plan.shape.parameters and seen["provenance"] == plan.provenance
    assert [layer["intermediate_size"] for layer in seen["layers"]] == [s.intermediate_size for s in plan.shape.layers]
    assert seen["verified_files"] == len([file for file in out.iterdir() if file.name != "prunekit.json"])
    made = AutoModelForCausalLM.from_pretrained(out)
    assert made.num_parameters() == plan.shape.parameters
    assert torch.isfinite(logits(out)).all()


def test_tables_for_people(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    """Plain text where no terminal is, and a path with [brackets] is shown as it is."""
    folder = tmp_path / "[bold]x[/nonsense] :smile:"
    folder.mkdir(parents=True)
    out = folder / "new"
    done = command("prune", model, "-o", out, "--params", "0.8", "--calib", text, *QUICK)
    assert done.code == 0 and done.err == "" and not ANSI.search(done.out), done
    assert "FFN width" in done.out and "What it costs" in done.out
    assert str(out) in done.out.replace("\n", "") or "[/nonsense] :smile:" in done.out.replace("\n", " ")
    shown = command("inspect", out)
    assert shown.code == 0 and "adapt-pruner" in shown.out and "tiny-llama" in shown.out


def test_narrow_encoding_does_not_end_in_a_traceback(model: Path, text: Path, tmp_path: Path) -> None:
    """A terminal without block characters gets question marks."""
    code = "sys.stdout.reconfigure(encoding='ascii', errors='strict')"
    done = run_apart("plan", model, "-o", tmp_path / "p.json", "--params", "0.8", "--calib", text, *QUICK, code=code)
    assert done.code == 0 and done.err == "" and "FFN width" in done.out


def test_same_seed_same_bytes(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        succeed(
            command, "prune", model, "-o", folder, "--blocks", "0.7", "--calib", text, *QUICK, "--set", f"seed={seed}"
        )
    first, second, third = ((folder / "plan.json").read_bytes() for folder in folders)
    assert first == second != third
    assert digests(folders[0]) == digests(folders[1]) != {}
    assert (folders[0] / "prunekit.json").read_bytes() == (folders[1] / "prunekit.json").read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str, command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    quick = QUICK if METHODS[name].allocation.cuts_units else BRIEF
    arguments = ("prune", model, "-o", out, "--params", "0.7", "--method", name, "--calib", text, *quick)
    data = succeed(command, *arguments)
    assert data["method"]["name"].endswith(name) or name in data["method"]["name"]
    assert data["share_of_parameters"] <= 0.7
    assert bool(data["dropped_layers"]) == (METHODS[name].allocation.name == "drop")
    made = AutoModelForCausalLM.from_pretrained(out)
    assert made.num_parameters() == data["pruned"]["parameters"]
    assert torch.isfinite(logits(out)).all()


@pytest.mark.parametrize("allocation", ALLOCATION)
@pytest.mark.parametrize("importance", IMPORTANCE)
def test_every_importance_with_every_allocation(
    importance: str, allocation: str, command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    units = () if allocation == "drop" else ("--set", "units=ffn,kv,query")
    told = ("plan", model, "-o", tmp_path / "plan.json", "--blocks", "0.6", "--set", f"allocation={allocation}", *units)
    arguments = (*told, "--set", f"importance={importance}", "--calib", text, *QUICK)
    if allocation in ("drop", "optimal"):
        # Where whole layers go, or loss curves decide, no score chooses a unit.
        done = command(*arguments, "--json")
        assert done.code == 0 and "prunekit: importance has no effect" in done.err, done
        assert "importance" not in done.json["method"]
        return
    data = succeed(command, *arguments)
    assert data["share_of_blocks"] <= 0.6
    assert (data["method"]["importance"], data["method"]["allocation"]) == (importance, allocation)
    # With exact widths the rest of the budget is smaller than one FFN channel, where any could come back.
    plan = Plan.load(tmp_path / "plan.json")
    narrower = any(layer.intermediate_size < 96 for layer in plan.shape.layers)
    assert not narrower or plan.provenance["target"]["parameters"] - plan.shape.parameters < 3 * 64


@pytest.mark.parametrize("allocation", ["drop", "optimal"])
def test_allocations_that_need_no_scores_of_units(
    allocation: str, command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    units = () if allocation == "drop" else ("--set", "units=ffn,kv,query")
    told = ("plan", model, "-o", tmp_path / "plan.json", "--blocks", "0.6", "--set", f"allocation={allocation}", *units)
    data = succeed(command, *told, "--calib", text, *(BRIEF if allocation == "drop" else QUICK))
    assert data["share_of_blocks"] <= 0.6
    # And the plan claims none.
    assert "importance" not in data["method"] and data["method"]["allocation"] == allocation


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layouts_agree(model_type: str, tmp_path: Path) -> None:
    """One plan, two checkpoints: the padded one in stock classes computes what the per-layer one does."""
    source = resolve(str(save_tiny(tmp_path / "dense", model_type)))
    plan = random_plan(source.shape, drop=(1,))
    real = rebuild(source, plan, tmp_path / "real")
    padded = rebuild(source, plan, tmp_path / "padded", layout="uniform")
    assert real.architecture == source.family.pruned_causal_lm_class and real.parameters == plan.shape.parameters
    assert padded.architecture == source.family.causal_lm_class and padded.parameters > real.parameters
    expected, got = logits(tmp_path / "real"), logits(tmp_path / "padded")
    assert torch.linalg.norm(got - expected) < 1e-5 * torch.linalg.norm(expected)
    assert torch.linalg.norm(logits(tmp_path / "dense") - expected) > 1e-2 * torch.linalg.norm(expected)


def test_layout_and_dtype_and_shards_by_the_command(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    succeed(command, "plan", model, "-o", file, "--blocks", "0.7", "--calib", text, *QUICK)
    for name, options in {
        "real": ("--max-shard", "50KB"),
        "padded": ("--layout", "uniform"),
        "half": ("--store-dtype", "bfloat16"),
    }.items():
        succeed(command, "prune", model, "--plan", file, "-o", tmp_path / name, *options)
        assert succeed(command, "inspect", tmp_path / name)["verified_files"] > 3
    expected = logits(tmp_path / "real")
    assert len(digests(tmp_path / "real")) > 3
    torch.testing.assert_close(
        logits(tmp_path / "padded"), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    assert succeed(command, "inspect", tmp_path / "half")["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "padded" / "config.json").read_text())["model_type"] == "llama"


def test_target_in_bytes_counts_what_is_stored(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    """A float32 model that is stored in bfloat16 may keep all of its parameters in half of its bytes."""
    out = tmp_path / "half"
    dense = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    target = ("--weights", f"{int(dense * 0.4)}B", "--store-dtype", "bfloat16")
    succeed(command, "prune", model, "-o", out, *target, "--calib", text, *QUICK)
    stored = succeed(command, "inspect", out)["weight_bytes"]
    assert 0.39 * dense < stored <= 0.4 * dense


def test_dropped_layers_claim_no_unit_scores(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "short"
    succeed(command, "prune", model, "-o", out, "--blocks", "0.5", "--method", "shortgpt", "--calib", text, *BRIEF)
    assert "random" not in json.dumps(succeed(command, "inspect", out)["provenance"]["method"])
    assert "cosine layers" in command("inspect", out).out


def test_overwrite_replaces_a_model(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for share in ("0.9", "0.7"):
        arguments = ("prune", model, "-o", out, "--params", share, "--calib", text, *QUICK, "--overwrite")
        data = succeed(command, *arguments)
    assert succeed(command, "inspect", out)["parameters"] == data["pruned"]["parameters"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_reader_that_leaves_early(model: Path, text: Path, tmp_path: Path) -> None:
    """`prunekit ... | head -1` is no reason for a traceback."""
    process = start("plan", model, "-o", tmp_path / "p.json", "--params", "0.8", "--calib", text, *QUICK)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in err, err


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "prunekit", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: prunekit " in done.stdout


def test_version_and_short_help(command: Command) -> None:
    from prunekit import __version__

    assert (done := command("--version")).code == 0 and done.out == f"prunekit {__version__}\n"
    for arguments in (("-h",), ("plan", "-h")):
        done = command(*arguments)
        assert done.code == 0 and "Usage: prunekit" in done.out
