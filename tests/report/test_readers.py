"""What each kind of file tells a report, and which files are refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.evaluation.verdict import word_of
from prunekit.report.facts.claims import Claim, Figure, FileSaid
from prunekit.report.readers.judging import half_width
from prunekit.report.readers.registry import read_files
from tests.support.report_files import (
    DENSE,
    PRUNED,
    aiperf,
    all_files,
    analysis,
    bench,
    candidates,
    edge_bench,
    evaluation,
    figure,
    generated,
    guidellm,
    result,
    summary_of_prune,
    tiny_plan,
    vllm,
    write,
)


def read(folder: Path, data: Any, name: str = "file.json") -> FileSaid:
    (said,) = read_files([write(folder / name, data)])
    return said


def claim(said: FileSaid, metric: str, name: str = "small", place: int = 0) -> Claim:
    return [each for each in said.reading.claims if each.metric == metric and each.subject.name == name][place]


def value(said: FileSaid, metric: str, name: str = "small") -> Figure:
    return claim(said, metric, name).figure


def test_an_evaluation(tmp_path: Path) -> None:
    said = read(tmp_path, evaluation("small", result(), **generated("Once")))
    loss = claim(said, "loss_added")
    assert loss.figure.value == pytest.approx(0.2) and loss.figure.status == "measured"
    # Student's t of 4 windows: 3.182 standard errors.
    assert loss.figure.low == pytest.approx(0.2 - 0.03182, abs=1e-5)
    assert loss.setup.startswith("held.jsonl, 2,048 tokens in windows of 512, float32 on cpu, token ids cdcdcdcdcdcd")
    assert (loss.subject.fingerprint, loss.against.fingerprint) == (PRUNED, DENSE)  # type: ignore[union-attr]
    assert value(said, "loss_added", "dense-model") == Figure(
        0.0, "exact", how="the model that others are compared with", files=("file.json",)
    )
    (verdict,) = said.reading.verdicts
    assert (verdict.word, verdict.text) == ("costs quality", "held.jsonl")
    (example,) = said.reading.examples
    assert example.texts == ("builtin",) and example.prompt == "Once"


def test_all_that_was_measured_by_windows_has_its_interval(tmp_path: Path) -> None:
    errors = {"kl": 0.01, "kl_standard_error": 0.02, "agreement": 0.99, "agreement_standard_error": 0.01}
    one = result(**errors, nll_standard_error=0.1, perplexity=20.0)
    said = read(tmp_path, evaluation("small", one))
    kl, same, perplexity = (value(said, name) for name in ("kl", "top1_agreement", "perplexity"))
    # Student's t of 4 windows, cut at what can be.
    assert (kl.low, kl.high) == (0.0, pytest.approx(0.01 + 3.182 * 0.02, abs=1e-4))
    assert (same.low, same.high) == (pytest.approx(0.99 - 0.03182, abs=1e-4), 1.0)
    assert perplexity.low == pytest.approx(20 * math.exp(-0.3182), rel=1e-3)
    assert perplexity.high == pytest.approx(20 * math.exp(0.3182), rel=1e-3)


def test_of_several_models_and_texts_each_has_its_own(tmp_path: Path) -> None:
    both = [evaluation("small", result("a.txt", 0.05), result("b.txt", 1.5)), evaluation("tiny", result("a.txt"))]
    data = {"baseline": "dense-model", "baseline_parameters": 1000, "models": both}
    said = read(tmp_path, data)
    assert [each.word for each in said.reading.verdicts] == ["broken", "costs quality"]
    assert said.reading.verdicts[0].text == "b.txt"
    assert value(said, "parameters", "dense-model").value == 1000


def test_a_verdict_that_is_written_down_is_taken(tmp_path: Path) -> None:
    said = read(tmp_path, evaluation(verdict={"verdict": "fine", "text": "other.txt"}))
    assert [(each.word, each.text) for each in said.reading.verdicts] == [("fine", "other.txt")]


def test_verdicts_and_intervals() -> None:
    assert [word_of(*pair) for pair in ((0.1, 0.9), (0.11, None), (1.01, 0.9), (0.0, 0.29))] == [
        "fine",
        "costs quality",
        "broken",
        "broken",
    ]
    assert half_width(0.1, None) == pytest.approx(0.196)
    assert half_width(0.1, 1) is None and half_width(None, 5) is None


def test_a_bench(tmp_path: Path) -> None:
    said = read(tmp_path, bench(0.8, ttft=0.1, tpot=0.01))
    ratio = claim(said, "tpot_ratio")
    assert ratio.figure.value == pytest.approx(0.8) and ratio.figure.interval == "p20–p80"
    assert ratio.setup == "Test CPU, 2 threads, prompt of 128, 32 tokens decoded, batch 1"
    assert ratio.detail == "torch 2.13.0 in float32"
    # 33 tokens in 0.1 + 32 · 0.01 seconds.
    assert value(said, "tokens_per_second", "dense-model").value == pytest.approx(33 / 0.42)
    assert claim(said, "file_bytes").detail == "32 bits a weight"
    assert value(said, "peak_bytes").value == 8000


def test_what_a_bench_does_not_believe_is_said(tmp_path: Path) -> None:
    data = bench()
    data["results"][0]["tpot"] |= {"believed": False, "why": ["Other processes took half of the time."]}
    said = read(tmp_path, data)
    assert said.reading.warnings == (
        "file.json: the time of each further token by small at batch 1 is not to be believed: Other processes took "
        "half of the time.",
    )
    assert "not to be believed" in value(said, "tpot_ratio").how
    doubted = {each.metric for each in said.reading.claims if not each.figure.believed}
    assert doubted == {"tpot", "tpot_ratio", "tokens_per_second", "requests_per_second"}


def test_an_exports_bench_is_of_the_export(tmp_path: Path) -> None:
    said = read(tmp_path, bench(runtime="gguf", dtype="q8_0"))
    assert {each.form for each in said.reading.claims if each.metric == "ttft"} == {"gguf q8_0"}


def test_a_bench_may_have_an_interval(tmp_path: Path) -> None:
    data = bench(0.8)
    data["results"][0]["tpot"]["interval"] = [0.79, 0.82]
    ratio = value(read(tmp_path, data), "tpot_ratio")
    assert (ratio.low, ratio.high, ratio.interval) == (0.79, 0.82, "95 % interval")
    data["results"][0]["tpot"]["interval"] = [0.9, 0.95]
    with pytest.raises(PrunekitError, match="bounds around the median"):
        read(tmp_path, data)


def test_a_bench_on_the_device_itself(tmp_path: Path) -> None:
    said = read(tmp_path, edge_bench())
    time = claim(said, "ttft")
    assert (time.form, time.subject.fingerprint, time.figure.value) == ("gguf q8_0", PRUNED, 0.05)
    # As prunekit bench says it of the same machine, lengths and threads.
    assert time.setup == claim(read(tmp_path, bench()), "ttft").setup
    assert value(said, "tokens_per_second").value == pytest.approx(33 / (0.05 + 32 * 0.005))
    # Of an earlier version, where llama.cpp took four threads, whatever the machine has.
    unsaid = edge_bench(config={**edge_bench()["config"], "threads": None})
    assert claim(read(tmp_path, unsaid), "ttft").setup.startswith("Test CPU, as many threads as the runtime chose, ")
    with pytest.raises(PrunekitError, match="this prunekit reads version 1"):
        read(tmp_path, edge_bench(version=2))


def export_folder(folder: Path, **changes: Any) -> Path:
    """An export with its parity.json, as far as a report reads it."""
    folder.mkdir()
    greedy = {"compared": 40, "equal": 38, "near_ties": 2, "wrong": 0}
    write(
        folder / "parity.json",
        {
            "text": "builtin",
            "tokens": 512,
            "logits": {"largest": 1.0, "largest_relative": 0.1, "rms_relative": 0.01},
            "tolerance": {"rms": 0.15, "largest": 1.5},
            "likeliest": greedy,
            "greedy": greedy,
            "together": None,
            "perplexity_reference": 20.0,
            "perplexity_runtime": 20.5,
            "agreement": 0.97,
            "kl": 0.004,
            "weights": [0.01, "model.embed_tokens.weight"],
        },
    )
    digest = hashlib.sha256((folder / "parity.json").read_bytes()).hexdigest()
    manifest = {
        "format": "prunekit-export",
        "version": 1,
        "target": "gguf",
        "dtype": "q8_0",
        "source": {"name": "small", "family": "Llama", "fingerprint": PRUNED},
        "verified": True,
        "unverified": None,
        "context_length": 2048,
        "notes": ["A note."],
        "files": {"parity.json": digest},
        **changes,
    }
    write(folder / "prunekit-export.json", manifest)
    return folder


def test_an_export(tmp_path: Path) -> None:
    folder = export_folder(tmp_path / "small-gguf")
    (said,) = read_files([folder])
    (compared,) = said.reading.parity
    assert dict(compared.rows)["most likely tokens"] == "38 of 40 are equal, 2 near ties, 0 wrong"
    assert dict(compared.rows)["perplexity"] == "20.5 in the runtime, 20 of the checkpoint in PyTorch"
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert claim(said, "file_bytes").figure.value == size and claim(said, "file_bytes").form == "gguf q8_0"
    (folder / "parity.json").write_text("{}")
    with pytest.raises(PrunekitError, match=r"parity\.json changed since it was written"):
        read_files([folder])


def test_an_export_that_was_not_run_says_so(tmp_path: Path) -> None:
    folder = export_folder(tmp_path / "small-gguf", verified=False, unverified="--no-verify was given")
    (said,) = read_files([folder])
    assert not said.reading.parity[0].verified
    assert said.reading.not_measured == (
        "Whether gguf q8_0 of small computes what PyTorch computes: --no-verify was given.",
    )


def test_an_export_may_know_the_users_text(tmp_path: Path) -> None:
    def loss(nll: float) -> dict[str, Any]:
        return {"status": "measured", "nll": nll, "standard_error": 0.1, "perplexity": math.exp(nll)}

    quality = {"text": "own.txt", "tokens": 2048, "window": 256, "tokens_sha256": "cd" * 32, "pruned": loss(3.2)}
    known = {**quality, "dense": loss(3.0), "exported": loss(3.3)}
    origin = {"name": "dense-model", "fingerprint": DENSE}
    source = {"name": "small", "family": "Llama", "fingerprint": PRUNED, "pruned_from": origin}
    (said,) = read_files([export_folder(tmp_path / "a", quality=known, source=source)])
    added = claim(said, "loss_added")
    assert added.figure.value == pytest.approx(0.3) and added.form == "gguf q8_0"
    told = [each for each in said.reading.claims if each.metric == "perplexity"]
    assert [each.subject.name for each in told] == ["dense-model", "small", "small"]
    assert [each.figure.value for each in told] == [pytest.approx(math.exp(nll)) for nll in (3.0, 3.2, 3.3)]
    assert [each.word for each in said.reading.verdicts] == ["costs quality"]
    unknown = {**quality, "dense": {"why": "none was named"}, "exported": {"why": "it gives no logits."}}
    (said,) = read_files([export_folder(tmp_path / "b", quality=unknown)])
    assert said.reading.not_measured == ("Perplexity of small (gguf q8_0) on own.txt: it gives no logits.",)


def test_candidates(tmp_path: Path) -> None:
    (said,) = read_files([candidates(tmp_path / "cand")])
    pruned = claim(said, "loss_added", "plan-0.8")
    assert (pruned.figure.low, pruned.figure.high, pruned.figure.status) == (0.07, 0.09, "measured")
    assert pruned.setup == "held.jsonl, 8,192 tokens in windows of 512, float32 on cpu, token ids cdcdcdcdcdcd"
    assert {each.form for each in said.reading.claims} == {"checkpoint", "gguf q4_k_m"}
    assert claim(said, "file_bytes", "dense-model").detail == "16 bits a weight"
    (plan,) = said.reading.plans
    assert plan.plan == tiny_plan() and plan.subject.plan == pruned.subject.plan
    assert said.reading.not_measured == ("Latency of quantised models: no runtime is installed.",)
    # A folder stands for its file.
    assert read_files([tmp_path / "cand"])[0].reading.claims == said.reading.claims


def test_a_plan_that_is_another_is_not_drawn(tmp_path: Path) -> None:
    file = candidates(tmp_path / "cand")
    plan = tmp_path / "cand" / "plan-0.8.json"
    plan.write_text(plan.read_text() + "\n")
    (said,) = read_files([file])
    assert not said.reading.plans and "is not the one that was measured" in said.reading.not_measured[-1]
    plan.unlink()
    (said,) = read_files([file])
    assert "it does not lie beside cand/candidates.json" in said.reading.not_measured[-1]


def test_a_plan(tmp_path: Path) -> None:
    tiny_plan().save(tmp_path / "small.json")
    (said,) = read_files([tmp_path / "small.json"])
    assert value(said, "parameters").value == tiny_plan().shape.parameters
    assert value(said, "blocks_share").value == pytest.approx(tiny_plan().share_of_blocks)


def test_a_plan_may_say_why(tmp_path: Path) -> None:
    data = json.loads(tiny_plan().to_json())
    data["provenance"]["why"] = {"layers": [{"index": 0, "words": "FFN whole: 3 mnats"}, {"index": 1, "words": "gone"}]}
    said = read(tmp_path, data, "small.json")
    assert [(each.layer, each.words) for each in said.reading.reasons] == [("0", "FFN whole: 3 mnats"), ("1", "gone")]


def test_an_analysis(tmp_path: Path) -> None:
    said = read(tmp_path, analysis())
    assert [each.words for each in said.reading.reasons] == ["matters most", "matters least"]


def test_what_prune_printed(tmp_path: Path) -> None:
    said = read(tmp_path, summary_of_prune())
    assert value(said, "loss_added").high == pytest.approx(0.3 + 1.96 * 0.02)
    by_windows = summary_of_prune()
    by_windows["check"]["windows"] = 4
    assert value(read(tmp_path, by_windows), "loss_added").high == pytest.approx(0.3 + 3.182 * 0.02, abs=1e-4)
    assert value(said, "parameters").value == 800 and said.reading.verdicts[0].word == "costs quality"
    # Nothing tells where it was made.
    assert "secret" not in repr(said)


def test_what_recover_printed_is_its_last_line(tmp_path: Path) -> None:
    last = {"checkpoint": "out/small", "recovery": {"tokens": 512, "held_out_kl": {"before": 0.25, "after": 0.125}}}
    file = tmp_path / "recover.json"
    file.write_text('{"step": 0}\n{"step": 1}\n' + json.dumps(last) + "\n")
    (said,) = read_files([file])
    assert ("trained on", "512 tokens; KL on held-out text 0.2500 before, 0.1250 after") in said.reading.facts


def test_a_result_of_vllm(tmp_path: Path) -> None:
    said = read(tmp_path, vllm(request_rate=4.0, failed=2, completed=98, num_prompts=100))
    rate = claim(said, "tokens_per_second")
    assert rate.figure.value == 1000.0
    assert rate.setup.startswith(
        "vllm bench serve, 4 requests/s, at most 8 at a time, 100 requests of about 1,000 tokens"
    )
    assert value(said, "ttft").value == pytest.approx(0.05) and value(said, "tpot").value == 0.008
    assert value(said, "failed_share").value == pytest.approx(0.02)
    assert said.reading.warnings[0].startswith("file.json: 2.0% of the requests to small failed")


def test_a_result_of_aiperf(tmp_path: Path) -> None:
    said = read(tmp_path, aiperf())
    assert (
        claim(said, "ttft").setup
        == "aiperf profile, at most 16 at a time, 200 requests of about 1,000 tokens, machine not told"
    )
    assert value(said, "ttft").value == pytest.approx(0.055) and value(said, "latency_p99").value == pytest.approx(2.5)
    seconds = aiperf(time_to_first_token={"unit": "sec", "p50": 0.5})
    assert value(read(tmp_path, seconds), "ttft").value == 0.5
    earlier = aiperf(input_config={"endpoint": {"model_names": ["small"]}, "loadgen": {"request_rate": 5.0}})
    assert "5 requests/s" in claim(read(tmp_path, earlier), "ttft").setup


def test_a_report_of_guidellm(tmp_path: Path) -> None:
    said = read(tmp_path, guidellm())
    assert claim(said, "ttft").setup.startswith("guidellm, poisson, 4 requests/s, 100 requests of about 510 tokens")
    assert value(said, "ttft").value == pytest.approx(0.07) and value(said, "latency").value == 1.8
    assert value(said, "ttft_p99").value == pytest.approx(0.24)


def without(data: Any, *names: str) -> Any:
    return {name: each for name, each in data.items() if name not in names}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (without(vllm(), "total_input_tokens"), "does not say how long prompts and answers were"),
        (without(vllm(), "request_rate", "max_concurrency"), "does not say at what rate requests came"),
        (without(vllm(), "model_id"), "does not say which model was served"),
        (vllm(completed=0), "does not say any request that was answered"),
        (without(aiperf(), "output_sequence_length"), "does not say how long prompts and answers were"),
        (aiperf(input_config={"models": ["small"]}), "does not say at what rate or concurrency"),
        (aiperf(input_config={"phases": [{"name": "profiling", "rate": 3}]}), "does not say which model"),
        (aiperf(time_to_first_token={"unit": "weeks", "p50": 3}), "unit"),
        (guidellm(benchmarks=[{"metrics": {}}]), "does not say how long prompts and answers were"),
        ({"some": "thing"}, "is of no kind that a report knows"),
        ({"format": "prunekit-latency-table"}, "it says that it is 'prunekit-latency-table'"),
        ([1, 2], "holds no JSON object"),
        ({"error": "no such model"}, "holds the error of a command"),
        (evaluation(results=[{**result(), "nll_increase": "much"}]), "holds much as results[0].nll_increase, where a"),
        (evaluation(results=[without(result(), "windows")]), "lacks results[0].windows"),
        (evaluation(verdict={"verdict": "splendid"}), "one of fine, costs quality, broken"),
        (evaluation(results=[result(agreement=1.5)]), "a number of at most 1"),
        (bench(config={"prompt": 1}), "lacks config.tokens"),
        (bench(results=[{"batch": 1}]), "lacks results[0].ttft"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: Any, says: str) -> None:
    with pytest.raises(PrunekitError) as raised:
        read(tmp_path, data)
    assert says in str(raised.value) and str(raised.value).endswith(".")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "this prunekit reads version 1"),
        ({"rows": [{"name": "x", "kind": "odd", "dtype": "q8_0"}]}, "one of dense, prune, quantise, both"),
        ({"model": 7}, "holds 7 as model, where an object is expected"),
        ({"rows": [{"name": "x", "kind": "dense", "dtype": "f", "figures": {"kl": figure(None)}}]}, "unless it is not"),
        (
            {"rows": [{"name": "x", "kind": "dense", "dtype": "f", "figures": {"kl": figure(1, "sure")}}]},
            "one of measured",
        ),
        (
            {"rows": [{"name": "x", "kind": "dense", "dtype": "f", "figures": {"kl": figure(1, low=2, high=3)}}]},
            "bound",
        ),
        ({"rows": [{"name": "x", "kind": "prune", "dtype": "f", "plan": "../../secret.json"}]}, "a file beside it"),
        ({"rows": [{}] * 3000}, "lists 3,000 entries"),
    ],
)
def test_candidates_that_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunekitError) as raised:
        read_files([candidates(tmp_path, **changes)])
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no valid JSON"),
        ("[" * 100_000, "is no valid JSON"),
        ('{"model": NaN}', "holds NaN"),
        ('{"model": 1e999}', "not finite"),
        ('{"model": ' + "9" * 5000 + "}", "digits"),
        ('{"a": 1, "a": 2}', "twice"),
        ("\x00\xff", "is no valid JSON"),
        ("dollars_per_hour = 1.0", "is no valid JSON"),
    ],
)
def test_texts_that_are_no_json(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(PrunekitError, match=says):
        read_files([file])


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, says in (
        (tmp_path / "none.json", "does not exist"),
        (tmp_path / "empty", "holds nothing that a report is made of"),
        (Path("/dev/zero"), "device"),
    ):
        with pytest.raises(PrunekitError, match=says):
            read_files([path])
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(PrunekitError, match="at most 67,108,864 are read"):
        read_files([tmp_path / "large.json"])
    with pytest.raises(PrunekitError, match="There is no file"):
        read_files([])


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "eval.json", evaluation())
    assert [each.name for each in read_files([tmp_path / "a/eval.json", tmp_path / "b/eval.json"])] == [
        "eval.json",
        "eval.json (2)",
    ]


def test_each_kind_is_known_by_one_reader(tmp_path: Path) -> None:
    from importlib import import_module

    from prunekit.report.readers.registry import READERS

    for file in all_files(tmp_path):
        data = json.loads(file.read_text())
        known = [name for name in READERS if import_module(f"prunekit.report.readers.{name}").recognises(data)]
        assert len(known) == 1, (file.name, known)
