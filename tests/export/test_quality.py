"""Perplexity on the user's own text before and after an export, and counts that add up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.export.export import export, export_model
from prunekit.export.parity import Greedy, _greedy, _likeliest
from prunekit.export.quality import MOST_TOKENS, WINDOW, Loss, in_runtime, own_text
from prunekit.export.target import Job, Options
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, load_model
from tests.support.command import Command, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("own") / "mine|<b>.txt", 12_000)


def test_the_loss_is_what_pytorch_says(uneven: Callable[..., Source], text: Path) -> None:
    job = Job(uneven("llama"), Options(), "fp32")
    given = own_text(job, str(text))
    assert given.tokens == len(given.windows) * WINDOW <= MOST_TOKENS and given.name == text.name
    model = load_model(job.source, dtype="float32", device="cpu")
    losses = []
    with torch.no_grad():
        for window in given.windows:
            ids = torch.as_tensor(window)[None]
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    found = in_runtime(TorchRunner(model), given)
    assert found.nll == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(len(losses)), rel=1e-3)


def test_an_export_tells_all_three(uneven: Callable[..., Source], text: Path, tmp_path: Path) -> None:
    made = export_model(uneven("llama"), "hf", tmp_path / "out", text=str(text), baseline=uneven("qwen2"), dtype="bf16")
    quality = made.quality
    assert quality is not None and made.parity is not None
    pruned, exported, dense = quality.pruned, quality.exported, quality.dense
    assert pruned.perplexity is not None and exported.perplexity is not None and dense.perplexity is not None
    assert exported.perplexity == pytest.approx(pruned.perplexity, rel=0.02)
    assert dense.perplexity != pytest.approx(pruned.perplexity, rel=0.001)
    manifest = json.loads((tmp_path / "out" / "prunekit-export.json").read_text())
    assert manifest["quality"] == quality.to_dict() == made.to_dict()["quality"]
    assert manifest["quality"]["exported"]["status"] == "measured"
    assert str(text.parent) not in json.dumps(manifest)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"| this export, bf16 | {exported.perplexity:.2f} |" in readme
    # The text's name is a stranger's: no markup, no column.
    assert r"mine\|\<b\>.txt" in readme


def test_what_is_not_measured_says_why(uneven: Callable[..., Source], text: Path, tmp_path: Path) -> None:
    made = export(uneven("llama"), "hf", tmp_path / "out", Options(), verify=False, text=str(text))
    assert made.quality is not None
    data = made.quality.to_dict()
    assert data["dense"] == {
        "status": "not measured",
        "why": "name the model that it was pruned from with --baseline",
    }
    assert data["exported"] == {"status": "not measured", "why": "--no-verify was given"}
    assert data["pruned"]["perplexity"] > 1
    assert "| this export, fp32 | not measured: --no-verify was given |" in (tmp_path / "out" / "README.md").read_text()
    assert "quality" not in json.loads(
        (export(uneven("llama"), "hf", tmp_path / "plain", verify=False).path / "prunekit-export.json").read_text()
    )


def test_a_runtime_that_gives_no_logits(uneven: Callable[..., Source], text: Path) -> None:
    job = Job(uneven("llama"), Options(), "fp32")
    given = own_text(job, str(text))

    class Mute(TorchRunner):
        def logits(self, ids):
            raise PrunekitError("This runtime gives tokens alone.")

    class Broken(TorchRunner):
        def logits(self, ids):
            return super().logits(ids) * math.nan

    model = load_model(job.source, dtype="float32", device="cpu")
    assert in_runtime(Mute(model), given) == Loss(why="This runtime gives tokens alone")
    assert in_runtime(Broken(model), given).why == "it gives logits that are not finite numbers"


def test_the_command(uneven: Callable[..., Source], command: Command, text: Path, tmp_path: Path) -> None:
    model = uneven("llama").path
    base = ("export", model, "--to", "hf", "-o", tmp_path / "out")
    done = command(*base, "--text", text, "--baseline", model)
    assert done.code == 0, done
    assert "the export, fp32" in done.out and "72: 72 equal, 0 tied, 0 other" in done.out
    for words, said in (
        (("--baseline", model), "--baseline is measured on a text; name one with --text"),
        (("--text", tmp_path / "none.txt"), "none.txt"),
        (("--text", text, "--baseline", tmp_path / "no-model"), "no-model"),
    ):
        ended = command("export", model, "--to", "hf", "-o", tmp_path / "other", *words)
        assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err
        assert not (tmp_path / "other").exists()
    ended = command("export", model, "--profile", "cpu", "-o", tmp_path / "other", "--text", text)
    assert ended.code == 2 and "--text is for one target" in ended.err


def test_a_baseline_of_another_vocabulary(uneven: Callable[..., Source], text: Path, tmp_path: Path) -> None:
    from tests.support.command import save_tiny

    other = save_tiny(tmp_path / "other")
    with pytest.raises(PrunekitError, match="give the model that it was pruned from as --baseline"):
        export_model(uneven("llama"), "hf", tmp_path / "out", text=str(text), baseline=str(other))
    assert not (tmp_path / "out").exists()


def test_counts_add_up() -> None:
    generator = np.random.default_rng(0)
    for near in (0.0, 0.2, 1.0):
        wanted = generator.normal(size=(50, 9)).astype(np.float32)
        made = wanted + generator.normal(size=wanted.shape).astype(np.float32) / 4
        found = _likeliest([wanted[:20], wanted[20:]], [made[:20], made[20:]], near)
        assert found.compared == 50 == found.equal + found.near_ties + found.wrong
        differ = wanted.argmax(-1) != made.argmax(-1)
        gaps = (wanted.max(-1) - wanted[np.arange(50), made.argmax(-1)])[differ]
        assert (found.near_ties, found.wrong) == (int((gaps <= near).sum()), int((gaps > near).sum()))
    assert _likeliest([np.eye(3)], [np.eye(3)], 0.0) == Greedy(3, 3, 0, 0)


def test_a_text_that_ends_early_adds_up_too() -> None:
    logits = np.eye(6)[[1, 2, 3]]
    tokens = np.array([1, 2, 3])
    assert _greedy(logits, tokens, tokens, 3, 0.1) == Greedy(3, 3, 0, 0)
    assert _greedy(logits, tokens, tokens[:1], 3, 0.1) == Greedy(2, 1, 0, 1)
    assert _greedy(logits, tokens, np.array([1, 5, 3]), 3, 2.0) == Greedy(2, 1, 1, 0)
    assert _greedy(logits, tokens, np.array([1, 5, 3]), 3, 0.1) == Greedy(2, 1, 0, 1)
