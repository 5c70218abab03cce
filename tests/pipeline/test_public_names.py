"""What `import prunekit` gives: lazily, each with an example, and enough for a model's whole way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import prunekit
from prunekit.evaluation.perplexity import EvalConfig
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.profiling.compare import BenchConfig
from tests.support.command import save_tiny, write_text
from tests.support.tiny import one_thread

NAMES = (
    "resolve",
    "Plan",
    "make_plan",
    "candidates",
    "rebuild",
    "prune",
    "recover",
    "check",
    "accept",
    "evaluate",
    "bench",
    "bench_server",
    "export_model",
    "optimize",
    "generate",
    "write_report",
    "watch_init",
    "watch_run",
    "progress",
    "PrunekitError",
)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_docstring_with_an_example(name: str) -> None:
    assert name in dir(prunekit)
    assert ">>> " in (getattr(prunekit, name).__doc__ or "")


def test_there_are_no_others() -> None:
    assert sorted(NAMES) == sorted(prunekit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        prunekit.prunes  # noqa: B018


def test_names_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys; sys.argv = ['prunekit']; import prunekit; dir(prunekit); prunekit.PrunekitError; prunekit.Plan\n"
        "assert 'torch' not in sys.modules and 'prunekit.pipeline' not in sys.modules\n"
        "prunekit.make_plan\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_from_a_model_to_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    text = str(write_text(tmp_path / "text.txt", 12_000))
    with one_thread():
        source = prunekit.resolve(str(save_tiny(tmp_path / "model")))
        plan = prunekit.make_plan(source, method="magnitude", calib=text, device="cpu", params=0.8)
        made = prunekit.prune(source, tmp_path / "smaller", plan=plan)
        assert made.written.parameters == plan.shape.parameters
        smaller = str(tmp_path / "smaller")
        options = {"text": text, "config": EvalConfig(length=64), "device": "cpu"}
        result = prunekit.evaluate(smaller, baseline=source, **options)
        assert result.perplexity > 1 and result.results[0].kl is not None
        assert prunekit.evaluate(smaller, **options).perplexity == pytest.approx(result.perplexity)
        config = BenchConfig(prompt=8, tokens=2, repeats=2, warmup=0, max_minutes=0)
        report = prunekit.bench(smaller, baseline=source, config=config, device="cpu")
        assert report.pruned.parameters == plan.shape.parameters < report.dense.parameters
        exported = prunekit.export_model(smaller, "hf", tmp_path / "exported", layout="uniform")
        assert exported.path == tmp_path / "exported"
        with pytest.raises(prunekit.PrunekitError, match="did you mean 'layout'"):
            prunekit.export_model(smaller, "hf", tmp_path / "other", layouts="uniform")


def test_a_plan_prints_as_a_short_table() -> None:
    shape = ModelShape(64, 16, 128, False, (LayerShape(8, 4, 96),) * 5)
    whole = LayerKeep.everything
    layers = [*(whole(index, shape.layers[index]) for index in (0, 1, 3)), LayerKeep(4, (0, 2), (0, 1, 4, 5), (5, 7))]
    shown = repr(Plan(shape, tuple(layers)))
    title, *rows = shown.splitlines()
    assert title.startswith("Plan: ") and "of the decoder blocks" in title
    assert [" ".join(row.split()) for row in rows] == [
        "layers query heads KV heads FFN width",
        "0-1 8 of 8 4 of 4 96 of 96",
        "2 dropped",
        "3 8 of 8 4 of 4 96 of 96",
        "4 4 of 8 2 of 4 2 of 96",
    ]
    html = Plan(shape, tuple(layers))._repr_html_()
    assert html.count("<tr>") == 5 and "<td>4 of 8</td>" in html
