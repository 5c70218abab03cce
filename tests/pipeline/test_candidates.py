"""Candidates on tiny models: what they foretell is what prune, eval and export give afterwards."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import prunekit
from prunekit.errors import PrunekitError
from prunekit.evaluation.perplexity import EvalConfig, TextResult
from prunekit.models import source as sources
from prunekit.models.source import Source, resolve
from prunekit.pipeline import make_plan, prune
from prunekit.pipeline.candidates import quality
from prunekit.pipeline.candidates import run as work
from prunekit.pipeline.candidates.result import FIGURES, Candidates, Row
from prunekit.plan import Plan, shapes_in_place
from prunekit.plan.recipe import Recipe
from prunekit.utils.phases.run import Run
from tests.plan.test_latency_table import made_up
from tests.support.command import Command, save_tiny, set_options, write_text
from tests.support.export_models import byte_tokenizer, dense_config
from tests.support.tiny import one_thread, tiny_model

READ = EvalConfig(length=64, max_tokens=640)
SETTINGS = {"sequences": 6, "length": 48, "ffn_multiple": 1}
STATUSES = {"measured", "predicted", "exact", "not measured"}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense Llama of four layers, hidden size 256, FFN 512, and its calibration text."""
    folder = tmp_path_factory.mktemp("dense")
    tiny_model("llama", config=dense_config("llama")).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    write_text(folder / "own.txt", 20_000)
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return resolve(str(folder / "model"))


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    return Recipe.of("prunekit", calib=str(folder / "own.txt"), **SETTINGS)


@pytest.fixture(scope="module")
def made(folder: Path, source: Source, recipe: Recipe) -> Candidates:
    return compared(source, folder / "sizes", recipe, context=100, memory="20MB")


def compared(source: Source | str, out: Path, recipe: Recipe, **options: Any) -> Candidates:
    told: dict[str, Any] = {"params": "0.9,0.7", "config": READ, "device": "cpu", **options}
    return prunekit.candidates(source, out, recipe=recipe, **told)


def row(made: Candidates, name: str) -> Row:
    return next(each for each in made.rows if each.name == name)


def values(found: Row, *names: str) -> list[float]:
    return [found.figures[name].value for name in names]  # type: ignore[misc]


QUALITY = ("loss_added", "kl", "top1_agreement", "perplexity")


def measured(result: TextResult) -> list[float]:
    assert result.nll_increase is not None and result.kl is not None and result.agreement is not None
    return [result.nll_increase, result.kl, result.agreement, result.perplexity]


def test_quality_is_what_eval_gives_of_what_prune_writes(
    made: Candidates, folder: Path, source: Source, tmp_path: Path
) -> None:
    for name in ("0.9", "0.7"):
        found = row(made, name)
        plan = folder / "sizes" / f"plan-{name}.json"
        written = prune(source, tmp_path / name, plan=plan, calib=str(folder / "own.txt"), device="cpu")
        result = prunekit.evaluate(str(tmp_path / name), baseline=source, config=READ, device="cpu").results[0]
        assert values(found, *QUALITY) == pytest.approx(measured(result), abs=1e-5, rel=1e-5)
        loss = found.figures["loss_added"]
        assert loss.low is not None and loss.high is not None and loss.status == "measured"
        # 10 windows: 9 degrees of freedom, for which tables have 2.262.
        assert result.windows == 10 and result.nll_increase_standard_error is not None
        assert (loss.high - loss.low) / 2 == pytest.approx(2.262 * result.nll_increase_standard_error, rel=1e-3)
        assert found.figures["file_bytes"].value == written.written.weight_bytes
        assert found.figures["parameters"].value == written.written.parameters
        assert "refitted, rescaled in memory, before recovery training" in loss.how


def test_plans_are_those_of_the_plan_command(made: Candidates, folder: Path, source: Source, recipe: Recipe) -> None:
    plan = make_plan(source, recipe=recipe, device="cpu", params="0.7")
    file = folder / "sizes" / "plan-0.7.json"
    assert file.read_text() == plan.to_json() + "\n"
    told = row(made, "0.7").to_dict()
    assert told["plan"] == "plan-0.7.json" and told["plan_sha256"] == Plan.load(file).file_digest()


def test_the_dense_row(made: Candidates, source: Source) -> None:
    found = made.rows[0]
    assert (found.name, found.kind, found.plan, found.verdict) == ("dense", "dense", None, None)
    assert values(found, *QUALITY[:3]) == [0, 0, 1] and found.figures["kl"].status == "exact"
    alone = prunekit.evaluate(source, config=READ, device="cpu").results[0]
    figure = found.figures["perplexity"]
    assert figure.value == pytest.approx(alone.perplexity) and figure.low < figure.value < figure.high  # type: ignore[operator]
    kv = source.shape.kv_bytes_per_token(4)
    assert found.figures["memory_bytes"].value == source.shape.weight_bytes(4) + 100 * kv
    assert found.figures["users"].value == (20_000_000 - source.shape.weight_bytes(4)) // (100 * kv)
    assert found.figures["prune_minutes"].value is None


def test_the_folder_holds_what_the_contract_says(made: Candidates, folder: Path) -> None:
    files = {path.name for path in (folder / "sizes").iterdir()}
    plans = {f"plan-{size}.{kind}" for size in (0.9, 0.7) for kind in ("json", "png")}
    assert files == {"candidates.json", *plans, "pareto.png", "prunekit-candidates.json"}
    told = json.loads((folder / "sizes" / "candidates.json").read_text())
    assert told == json.loads(json.dumps(made.to_dict())) and made.path == folder / "sizes"
    assert (told["format"], told["version"], told["for"], told["context"]) == ("prunekit-candidates", 1, None, 100)
    assert told["memory_bytes"] == 20_000_000 and told["evaluation"]["source"] == "builtin"
    assert [each["name"] for each in told["rows"]] == ["dense", "0.9", "0.7"]
    for each in told["rows"]:
        assert tuple(each["figures"]) == FIGURES
        for figure in each["figures"].values():
            assert set(figure) == {"value", "status", "low", "high", "how"} and figure["status"] in STATUSES
            assert (figure["value"] is None) == (figure["status"] == "not measured") and figure["how"]
            if figure["low"] is not None:
                assert figure["low"] <= figure["value"] <= figure["high"]
    assert any("Recovery training" in sentence for sentence in told["not_measured"])
    assert str(folder) not in json.dumps(told)


def test_the_same_again_gives_the_same_bytes(made: Candidates, folder: Path, source: Source, recipe: Recipe) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "sizes").iterdir()}
    with pytest.raises(PrunekitError, match="already exists"):
        compared(source, folder / "sizes", recipe, context=100, memory="20MB")
    compared(source, folder / "sizes", recipe, context=100, memory="20MB", overwrite=True)
    assert {path.name: path.read_bytes() for path in (folder / "sizes").iterdir()} == before


def test_what_is_finished_needs_no_model(
    made: Candidates, source: Source, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **options: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sources, "load_model", none)
    again = compared(source, tmp_path / "again", recipe, context=100, memory="20MB")
    assert again.rows == made.rows
    # Another place to run in changes no measurement.
    other = compared(source, tmp_path / "other", recipe, context=50)
    assert values(row(other, "0.7"), *QUALITY) == values(row(made, "0.7"), *QUALITY)
    assert row(other, "0.7").figures["users"].value is None


def test_an_interrupted_run_goes_on(
    source: Source, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Recipe.of("prunekit", calib=str(folder / "own.txt"), **{**SETTINGS, "seed": 1})
    real, solved = work.solve, []

    def stops(dense: Any, plan: Plan) -> Any:
        solved.append(plan.share_of_parameters)
        if len(solved) == 2:
            raise KeyboardInterrupt
        return real(dense, plan)

    monkeypatch.setattr(work, "solve", stops)
    with pytest.raises(KeyboardInterrupt):
        compared(source, tmp_path / "out", own)
    assert not any(tmp_path.iterdir())
    made = compared(source, tmp_path / "out", own)
    assert len(solved) == 3 and solved[1] == solved[2] and len(made.rows) == 3
    # And a size that is added costs itself alone.
    compared(source, tmp_path / "more", own, params="0.9,0.8,0.7")
    assert len(solved) == 4


@pytest.mark.parametrize("method", ["magnitude", "flap", "shortgpt", "adapt-pruner"])
def test_every_method(method: str, source: Source, folder: Path, tmp_path: Path) -> None:
    widths = {} if method == "shortgpt" else {"ffn_multiple": 1}
    recipe = Recipe.of(method, calib=str(folder / "own.txt"), sequences=4, length=16, **widths)
    made = compared(source, tmp_path / "sizes", recipe, params=[0.7])
    plan = tmp_path / "sizes" / "plan-0.7.json"
    prune(source, tmp_path / "pruned", plan=plan, calib=str(folder / "own.txt"), device="cpu")
    result = prunekit.evaluate(str(tmp_path / "pruned"), baseline=source, config=READ, device="cpu").results[0]
    assert values(made.rows[1], *QUALITY) == pytest.approx(measured(result), abs=1e-5, rel=1e-5)
    how = made.rows[1].figures["kl"].how
    assert "refitted" not in how and ("compensated" in how) == (method == "flap")


def test_sizes_by_latency_and_by_kv_cache(source: Source, recipe: Recipe, tmp_path: Path) -> None:
    # A millisecond a query head and a hundredth of one a channel: made up, so that no noise puts a size out of reach.
    table = made_up({1: 1e-5, 512: 5.12e-3}, source.shape)
    one = table.rest
    heads = {(kv, group): replace(one, median=kv * group * 1e-3) for kv in range(1, 9) for group in range(1, 9)}
    table = replace(table, attention={"full_attention": heads})
    table.save(tmp_path / "table.json")
    asked: dict[str, Any] = {"params": None, "latency": "0.9,0.7", "latency_tables": [tmp_path / "table.json"]}
    found = compared(source, tmp_path / "times", recipe, **asked)
    for name, share in (("latency-0.9", 0.9), ("latency-0.7", 0.7)):
        figure = row(found, name).figures["tpot_ratio"]
        assert figure.value is not None and figure.value <= share and figure.low is None
        assert (tmp_path / "times" / f"plan-{name}.json").is_file()
        cost = table.cost()
        plan = Plan.load(tmp_path / "times" / f"plan-{name}.json")
        assert figure.value == pytest.approx(cost.of(shapes_in_place(plan.layers, 4)) / cost.of(source.shape.layers))
    # Another table is another target, and what was planned by the first is not taken for it.
    slower = replace(table, ffn={width: replace(each, median=2 * each.median) for width, each in table.ffn.items()})
    again = compared(source, tmp_path / "other", recipe, **{**asked, "latency": "0.7", "latency_tables": [slower]})
    budgets = [each.plan.provenance["target"]["budgets"] for each in (again.rows[1], found.rows[2]) if each.plan]
    assert budgets[0] != budgets[1]
    with pytest.raises(PrunekitError, match="met by one --latency-table"):
        compared(source, tmp_path / "two", recipe, **{**asked, "latency_tables": [table, slower]})
    caches = compared(source, tmp_path / "caches", recipe, params="0.9", kv_cache=[0.75, 0.5])
    assert [each.name for each in caches.rows] == ["dense", "kv-cache-0.75", "kv-cache-0.5"]
    dense = source.shape.kv_bytes_per_token(4)
    for each, share in zip(caches.rows[1:], (0.75, 0.5), strict=True):
        assert each.figures["kv_bytes_per_token"].value <= share * dense  # type: ignore[operator]
        assert each.figures["parameters"].value <= 0.9 * source.shape.parameters  # type: ignore[operator]


def test_a_method_without_a_plan_is_refused(source: Source, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match="slicegpt"):
        compared(source, tmp_path / "out", Recipe.of("slicegpt", calib=str(folder / "own.txt")))
    assert not any(tmp_path.iterdir())


def test_text_that_was_calibrated_on_is_told(
    source: Source, recipe: Recipe, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "prunekit"):
        made = compared(source, tmp_path / "same", recipe, text=str(folder / "own.txt"))
    assert "is the calibration text too" in caplog.text and "calibration text too" in made.not_measured[0]
    caplog.clear()
    copied = tmp_path / "copy.txt"
    copied.write_text("A beginning of its own. " + (folder / "own.txt").read_text())
    with caplog.at_level(logging.WARNING, "prunekit"):
        made = compared(source, tmp_path / "copied", recipe, text=str(copied))
    assert "% of it)" in caplog.text and made.evaluation["shared_with_calibration"] > 0.01
    caplog.clear()
    with caplog.at_level(logging.WARNING, "prunekit"):
        made = compared(source, tmp_path / "other", recipe)
    assert not caplog.text and made.evaluation["shared_with_calibration"] == 0


def test_a_size_that_breaks_is_told_and_the_others_go_on(
    source: Source, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.utils.numerics.finite import NotFinite

    real = quality.pruned_in_memory

    def breaks(source: Source, plan: Plan, *args: Any, **options: Any) -> Any:
        if plan.share_of_parameters < 0.75:
            raise NotFinite("Layer 1 came out as NaN.")
        return real(source, plan, *args, **options)

    monkeypatch.setattr(quality, "pruned_in_memory", breaks)
    told: dict[str, bool] = {}
    real_advance = Run.advance

    def advance(self: Run, phase: Any, *args: Any) -> None:
        told[phase.title] = args[-1]
        real_advance(self, phase, *args)

    monkeypatch.setattr(Run, "advance", advance)
    made = compared(source, tmp_path / "out", recipe, params="0.9,0.74")
    # How long a size took that broke says nothing of the others.
    assert told["quality of 0.74"]
    bad = row(made, "0.74")
    assert bad.verdict == "broken" and bad.figures["kl"].value is None and "Layer 1" in bad.figures["kl"].how
    assert not bad.pareto and row(made, "0.9").figures["kl"].value is not None
    # What broke is tried again the next time.
    monkeypatch.setattr(quality, "pruned_in_memory", real)
    assert row(compared(source, tmp_path / "again", recipe, params="0.9,0.74"), "0.74").figures["kl"].value is not None


def exported(model: str | Source, out: Path, dtype: str) -> Path:
    made = prunekit.export_model(model, "gguf", out, dtype=dtype, verify=False)
    return out / str(made.written.facts["file"])


@pytest.mark.parametrize("dtype", ["q8_0", "q4_k_m"])
def test_the_format_that_ships(
    dtype: str, made: Candidates, source: Source, recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    """Bytes of the file are those that export writes, but for the name of the folder that its header holds; quality is
    that of the weights in it, read back as `prunekit` reads any GGUF file."""
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    found = compared(source, tmp_path / "sizes", recipe, ships_as=f"gguf:{dtype}")
    assert [each.name for each in found.rows] == [
        "dense",
        f"dense {dtype}",
        "0.9",
        f"0.9 {dtype}",
        "0.7",
        f"0.7 {dtype}",
    ]
    assert [each.kind for each in found.rows[:4]] == ["dense", "quantise", "prune", "both"]
    assert values(row(found, "0.7"), *QUALITY) == values(row(made, "0.7"), *QUALITY)
    plan = tmp_path / "sizes" / "plan-0.7.json"
    prune(source, tmp_path / "pruned", plan=plan, calib=str(folder / "own.txt"), device="cpu")
    for name, model in (("dense", str(source.path)), ("0.7", str(tmp_path / "pruned"))):
        each = row(found, f"{name} {dtype}")
        file = exported(model, tmp_path / f"{name}-gguf", dtype)
        size = each.figures["file_bytes"]
        assert size.status == "exact" and abs(size.value - file.stat().st_size) <= 64  # type: ignore[operator]
        again = exported(str(_renamed(Path(model), tmp_path / name / "model")), tmp_path / f"{name}-again", dtype)
        assert size.value == again.stat().st_size
        assert each.plan_file == (None if name == "dense" else "plan-0.7.json") and each.dtype == dtype
    dense = row(found, f"dense {dtype}")
    back = prunekit.evaluate(
        str(tmp_path / "dense-gguf" / f"model-{dtype}.gguf"),
        baseline=source,
        config=READ,
        device="cpu",
        dtype="float32",
    )
    assert values(dense, *QUALITY) == pytest.approx(measured(back.results[0]), abs=1e-4, rel=1e-4)
    assert dense.figures["kv_bytes_per_token"].value == source.shape.kv_bytes_per_token(2)
    assert dense.figures["ttft_ratio"].value is None and 0 < dense.figures["tpot_ratio"].value < 1  # type: ignore[operator]


def _renamed(folder: Path, wanted: Path) -> Path:
    """The checkpoint under the name that candidates give it for a moment: GGUF headers hold it."""
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to(folder, target_is_directory=True) if folder.name == wanted.name else folder.rename(wanted)
    return wanted


def test_fallbacks_are_counted_and_the_rounding_that_avoids_them_is_named(
    source: Source, recipe: Recipe, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    found = compared(source, tmp_path / "out", recipe, ships_as="gguf:q4_k_m")
    each = row(found, "0.7 q4_k_m")
    assert each.fallbacks is not None and each.fallbacks["of_pruned_widths"] > 0
    assert each.advice is not None and "--round-for gguf" in each.advice and "cost" in each.advice
    assert "fell back to larger types" in each.figures["file_bytes"].how
    dense = row(found, "dense q4_k_m")
    assert dense.fallbacks == dict.fromkeys(each.fallbacks, 0) and dense.advice is None
    # No other tensor of this model has rows that pruning changes.
    assert each.fallbacks["tensors"] == each.fallbacks["of_pruned_widths"]
    assert each.fallbacks["bytes"] == each.fallbacks["of_pruned_widths_bytes"] > 0
    rounded = Recipe.from_dict({**recipe.to_dict(), "round_for": "gguf", "ffn_multiple": None})
    found = compared(source, tmp_path / "rounded", rounded, params="0.75", ships_as="gguf:q4_k_m")
    both = row(found, "0.75 q4_k_m")
    assert both.fallbacks is not None and both.fallbacks["tensors"] == 0 and both.advice is None


def test_a_format_that_does_not_round_is_the_row_itself(source: Source, recipe: Recipe, tmp_path: Path) -> None:
    found = compared(source, tmp_path / "out", recipe, ships_as="hf:float32")
    assert [each.name for each in found.rows] == ["dense", "0.9", "0.7"]
    assert all(each.dtype == "fp32" and each.figures["file_bytes"].status == "exact" for each in found.rows)
    # All files of the export: weights, tokenizer, README.
    weights = source.shape.weight_bytes(4)
    assert weights < found.rows[0].figures["file_bytes"].value < weights + 2**20  # type: ignore[operator]


def test_a_format_that_cannot_be_had_here_is_told(
    source: Source, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prunekit.pipeline.candidates import shipping

    monkeypatch.setattr(shipping, "why_not", lambda format_: "Exporting to gguf needs gguf; run pip.")
    with caplog.at_level(logging.WARNING, "prunekit"):
        found = compared(source, tmp_path / "out", recipe, ships_as="gguf:q5_k_m")
    assert "needs gguf" in caplog.text
    both = row(found, "0.9 q5_k_m")
    assert both.figures["file_bytes"].value is None and "needs gguf" in both.figures["kl"].how
    assert both.verdict is None and not both.pareto and row(found, "0.9").figures["kl"].value is not None


def test_what_makes_no_sense_is_refused_before_the_work(
    source: Source, recipe: Recipe, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **options: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sources, "load_model", none)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"params": None}, "Say the sizes"),
        ({"params": "0.9,0.9"}, "twice"),
        ({"params": "0.9,0.0001"}, "0.0001"),
        ({"params": "0.9,5M"}, "leaves nothing to prune"),
        ({"text": "nowhere.txt"}, "no file nowhere.txt"),
        ({"ships_as": "gguf:q9"}, "no dtype 'q9'"),
        ({"context": 0}, "--context must be"),
        ({"context": True}, "--context must be"),
        ({"memory": "much"}, "--device-memory much is not a size"),
        ({"latency_tables": ["nowhere.json"]}, "does not exist"),
        ({"config": EvalConfig(length=10_000)}, "longer than the 256 positions"),
        ({"device": "cuda:77"}, "no device"),
    ]
    for options, said in bad:
        with pytest.raises(PrunekitError, match=said):
            compared(source, tmp_path / "out", recipe, **options)
        assert not any(tmp_path.iterdir()), options
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(PrunekitError, match="so it is not replaced"):
        compared(source, mine, recipe, overwrite=True)
    with pytest.raises(PrunekitError, match="already exists"):
        compared(source, mine, recipe)
    assert (mine / "notes.txt").read_text() == "mine"


def test_a_folder_that_was_changed_is_not_replaced(source: Source, recipe: Recipe, tmp_path: Path) -> None:
    compared(source, tmp_path / "out", recipe, params="0.9")
    file = tmp_path / "out" / "plan-0.9.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(PrunekitError, match="has been changed"):
        compared(source, tmp_path / "out", recipe, params="0.9", overwrite=True)


def test_the_command(command: Command, folder: Path, tmp_path: Path) -> None:
    settings = set_options(**SETTINGS)
    told = ("--calib", folder / "own.txt", *settings, "--length", "64", "--max-tokens", "640", "--device", "cpu")
    ended = command("candidates", folder / "model", "--params", "0.9,0.7", *told, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    words = " ".join(ended.out.split())
    assert "Quality on builtin (630 tokens" in words and "Not measured: Latency" in words and "dense" in words
    assert "plan-0.9.json" in words and "Scale of the loss added" in words
    assert "Why 0.9: layer " in words and "(cut deepest): FFN" in words and "(by the curve)" in words
    asked = ("--device-memory", "20MB", "--context", "100", "--json")
    ended = command("candidates", folder / "model", "--params", "0.9,0.7", *told, "-o", tmp_path / "json", *asked)
    assert ended.code == 0 and ended.json["format"] == "prunekit-candidates"
    assert ended.json["rows"][1]["figures"]["users"]["value"] > 0
    plan = tmp_path / "out" / "plan-0.7.json"
    ended = command("prune", folder / "model", "--plan", plan, *told[:2], "-o", tmp_path / "pruned", "--device", "cpu")
    assert ended.code == 0 and (tmp_path / "pruned" / "model.safetensors").is_file()


def test_the_command_that_is_named_writes_the_model_that_was_measured(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    """In bfloat16 too, in which what a plan leaves is solved to other weights than in float32."""
    settings = (*set_options(**SETTINGS), "--length", "64", "--max-tokens", "640")
    own, model = folder / "own.txt", folder / "model"
    asked = ("--params", "0.7", "--dtype", "bfloat16", "--device", "cpu", "--calib", own)
    ended = command("candidates", model, *asked, *settings, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    said = shlex.split(ended.out[ended.out.index("Apply one with:") :].replace("Apply one with:", ""))
    assert said[:2] == ["prunekit", "prune"] and said[-2:] == ["-o", "DIR"]
    for option, value in (("--dtype", "bfloat16"), ("--device", "cpu"), ("--calib", str(own))):
        assert said[said.index(option) + 1] == value
    assert command(*said[1:-1], tmp_path / "pruned", "--check", "none").code == 0
    found = json.loads((tmp_path / "out" / "candidates.json").read_text())["rows"][1]["figures"]["loss_added"]
    told = {"config": READ, "device": "cpu", "dtype": "bfloat16"}
    result = prunekit.evaluate(str(tmp_path / "pruned"), baseline=str(model), **told).results[0]
    assert found["value"] == pytest.approx(result.nll_increase, abs=1e-6)
    # What is chosen by itself is not repeated.
    ended = command("candidates", model, "--params", "0.7", "--calib", own, *settings, "-o", tmp_path / "auto")
    assert ended.code == 0 and "--dtype" not in ended.out and "--device " not in ended.out


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((), "Say the sizes to compare"),
        (("--params", "0.9,0.8", "--kv-cache", "0.9,0.8"), "One option lists the sizes"),
        (("--latency", "0.9"), "needs --latency-table FILE"),
        (("--params", "0.9", "--blocks", "0.9"), "one of the two"),
        (("--params", "0.9,x"), "is not a target"),
        (("--params", "0.9,0.9"), "twice"),
        (("--params", "0.9", "--for", "gguf:q4"), "no dtype 'q4'"),
        (("--params", "0.9", "--eval", "nowhere.txt"), "no file nowhere.txt"),
        (("--params", "0.9", "--device-memory", "8"), "is not a size"),
        (("--params", "0.9", "--max-tokens", "1"), "at least 2"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    told: tuple[str, ...], said: str, command: Command, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model")
    ended = command("candidates", model, *told, "-o", tmp_path / "out")
    assert ended.code == 2 and said in " ".join(ended.err.split()) and "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()
