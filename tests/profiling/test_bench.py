from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.runner import Decoded, TorchRunner
from prunekit.models.source import resolve
from prunekit.profiling import memory as bench_memory
from prunekit.profiling.compare import BenchConfig, Contender, bench, ideal_decode_ratio, ideal_prefill_ratio
from prunekit.profiling.memory import measure_peak
from prunekit.utils.process.child import Ended
from prunekit.utils.timing import Summary, compare, order, percentile, prompt_ids
from tests.support.tiny import MODEL_TYPES, VOCAB, random_plan, rebuilt_model, tiny_model
from tests.support.tiny_text import tiny_tokenizer

FAST = BenchConfig(batch=(1, 2), prompt=8, tokens=3, repeats=3, warmup=1, max_minutes=0)


@pytest.fixture(scope="module")
def models():
    dense = tiny_model("llama")
    plan = random_plan(FAMILIES["llama"].shape(dense.config))
    return dense, rebuilt_model(dense, plan), (plan.source, plan.shape)


def contenders(models, **facts):
    """The two models as bench takes them; ``facts`` are pairs (dense, pruned)."""
    dense, pruned, shapes = models
    return [
        Contender.of_model(model, shape, name, **{fact: pair[place] for fact, pair in facts.items()})
        for place, (model, shape, name) in enumerate(zip((dense, pruned), shapes, ("dense", "pruned"), strict=True))
    ]


def test_models_take_turns_and_warm_up(models, monkeypatch):
    calls = []

    def greedy(self, ids, tokens, clock=None):
        """Notes whose turn it was and answers with times known beforehand."""
        index = [models[0], models[1]].index(self.model)
        calls.append((index, len(ids), clock is not None))
        assert tokens == 4
        return Decoded(None, *((2.0, 0.2), (1.0, 0.1))[index])

    monkeypatch.setattr(TorchRunner, "greedy", greedy)
    config = BenchConfig(batch=(1, 4), prompt=8, tokens=3, repeats=4, warmup=2, max_minutes=0)
    report = bench(*contenders(models), config)
    for size in (1, 4):
        warm = [index for index, batch, measured in calls if batch == size and not measured]
        turns = [index for index, batch, measured in calls if batch == size and measured]
        assert warm == [0, 1, 1, 0]
        assert turns == [0, 1, 1, 0, 0, 1, 1, 0]
    result = report.results[1]
    assert result.batch == 4
    assert (result.ttft.dense.median, result.ttft.pruned.median) == (2.0, 1.0)
    assert result.tpot.ratio == Summary(0.5, 0.5, 0.5, 4)
    assert result.tpot.verdict == "faster"


def test_order_cancels_a_steady_drift():
    turns = order(4)
    where = [[place for place, model in enumerate(turns) if model == index] for index in (0, 1)]
    assert sum(where[0]) == sum(where[1])


def test_statistics_on_known_numbers():
    values = [9.0, 1.0, 4.0, 4.0, 2.5, 8.0, 3.0]
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share))
    made = compare([2.0, 4.0, 8.0], [1.0, 4.0, 12.0], ideal=0.5)
    assert made.ratio.median == 1.0
    assert made.ratio.p20 == pytest.approx(0.7)
    assert made.ratio.p80 == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("pruned", "verdict"),
    [([0.5, 0.6, 0.7], "faster"), ([1.5, 1.6, 1.7], "slower"), ([0.7, 0.95, 1.4], "no gain shown")],
)
def test_verdict(pruned, verdict):
    assert compare([1.0, 1.0, 1.0], pruned, 0.5).verdict == verdict


def test_prefill_and_decode_are_timed_apart(models):
    ticks = iter([10.0, 13.0, 19.0])
    made = TorchRunner(models[0]).greedy(prompt_ids(2, 8, VOCAB, 0), 5, lambda: next(ticks))
    assert (made.ttft, made.tpot) == (3.0, 1.5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_run_decodes_what_generate_does(model_type):
    dense = tiny_model(model_type)
    model = rebuilt_model(dense, random_plan(FAMILIES[model_type].shape(dense.config)))
    ids = prompt_ids(2, 12, VOCAB, 0)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    with torch.inference_mode():
        made = TorchRunner(model).greedy(ids.numpy(), 6)
        handle.remove()
        expected = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert [part.shape[1] for part in seen] == [12, 1, 1, 1, 1, 1]
    assert torch.equal(torch.cat([*seen, torch.as_tensor(made.tokens[:, -1:])], 1), expected)


def test_a_runner_steps_as_the_whole_text_does(models):
    runner = TorchRunner(models[1])
    ids = prompt_ids(2, 12, VOCAB, 0).numpy()
    whole = np.stack([runner.logits(row) for row in ids])
    made = [runner.start(ids[:, :9]), *(runner.step(ids[:, place]) for place in range(9, 12))]
    np.testing.assert_allclose(np.stack(made, 1), whole[:, 8:], atol=1e-4)


def test_prompts_are_random_and_never_zero():
    ids = prompt_ids(4, 500, VOCAB, 0)
    assert ids.shape == (4, 500)
    assert ids.min() >= 1
    assert ids.max() < VOCAB
    assert len(ids.unique()) > 100
    assert torch.equal(ids, prompt_ids(4, 500, VOCAB, 0))
    assert not torch.equal(ids, prompt_ids(4, 500, VOCAB, 1))


def test_ideal_ratios_equal_sums_over_tokens(models):
    dense, pruned = models[2]

    def flops(shape, prompt):
        blocks = sum(shape.flops_per_token(t) - shape.flops_per_token(0) for t in range(prompt))
        head = 2 * shape.vocab_size * shape.hidden_size
        return blocks + prompt * (shape.flops_per_token(0) - head) + head

    for prompt in (1, 2, 7, 128):
        assert ideal_prefill_ratio(dense, pruned, prompt) == pytest.approx(flops(pruned, prompt) / flops(dense, prompt))
    config = BenchConfig(prompt=100, tokens=20)
    expected = pruned.decode_bytes(4, 4 * 110) / dense.decode_bytes(4, 4 * 110)
    facts = [each.facts for each in contenders(models)]
    assert ideal_decode_ratio(*facts, config, 4) == pytest.approx(expected)


def test_report_counts_what_is_there(models):
    dense, pruned, shapes = models
    report = bench(*contenders(models, file_bytes=(1000, 600), peak_bytes=(None, None)), FAST)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for name, model in (("dense", dense), ("pruned", pruned)):
        count = sum(weight.numel() for weight in model.parameters())
        assert data[name]["parameters"] == count
        assert data[name]["weight_bytes"] == 4 * count
    heads = sum(layer.num_key_value_heads for layer in shapes[1].layers)
    assert data["pruned"]["kv_bytes_per_token"] == 2 * heads * 16 * 4
    assert data["ratios"]["file_bytes"] == 0.6
    assert data["ratios"]["peak_bytes"] is None
    assert [result["batch"] for result in data["results"]] == [1, 2]
    for result in data["results"]:
        for name in ("ttft", "tpot"):
            assert result[name]["dense"]["count"] == 3
            assert 0 < result[name]["dense"]["p20"] <= result[name]["dense"]["median"] <= result[name]["dense"]["p80"]
            assert 0 < result[name]["ideal_ratio"] < 1
            assert result[name]["verdict"] in ("faster", "slower", "no gain shown")
    assert {"cpu", "threads", "torch", "transformers", "device"} <= set(data["machine"])
    assert data["dtype"] == "float32"


def test_threads_are_set_and_put_back(models):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    report = bench(
        *contenders(models), BenchConfig(prompt=4, tokens=1, repeats=2, warmup=0, threads=other, max_minutes=0)
    )
    assert report.machine["threads"] == other
    assert torch.get_num_threads() == before


def test_what_does_not_fit_is_refused(models):
    dense, _, shapes = models
    with pytest.raises(PrunekitError, match="256 positions dense"):
        bench(*contenders(models), BenchConfig(prompt=250, tokens=7))
    other = tiny_model("llama", layers=1, vocab_size=200)
    with pytest.raises(PrunekitError, match="can't take the same prompts"):
        bench(*contenders((dense, other, (shapes[0], FAMILIES["llama"].shape(other.config)))), FAST)
    with pytest.raises(PrunekitError, match="one --dtype for both"):
        bench(*contenders((dense, tiny_model("llama").bfloat16(), (shapes[0], shapes[0]))), FAST)
    for fields in ({"batch": ()}, {"batch": (0,)}, {"repeats": 1}, {"prompt": 0}, {"threads": 0}):
        with pytest.raises(PrunekitError):
            BenchConfig(**fields)


def test_command(tmp_path, monkeypatch):
    pytest.importorskip("prunekit.models.source")
    from prunekit.cli.commands.bench import bench_command  # noqa: F401
    from prunekit.cli.common import app

    for name, width in (("dense", 96), ("pruned", 32)):
        tiny_model("llama", layers=2, intermediate_size=width).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    # One real measurement takes a new process; the other answers at once.
    measured = {str(tmp_path / "dense"): 500}
    monkeypatch.setattr(
        "prunekit.profiling.run.measure_peak",
        lambda model, *rest, **known: measured.get(model) or measure_peak(model, *rest, **known),
    )
    out = tmp_path / "bench.json"
    (tmp_path / "prices.toml").write_text("dollars_per_hour = 3.6\ndollars_per_kwh = 0.36\n")
    arguments = ["bench", str(tmp_path / "pruned"), "--baseline", str(tmp_path / "dense"), "--prompt-tokens", "8"]
    arguments += ["--max-minutes", "0", "--new-tokens", "2", "--repeats", "2", "--device", "cpu", "-o", str(out)]
    arguments += ["--prices", str(tmp_path / "prices.toml"), "--energy", "--assume-watts", "50"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "ideal" in done.stdout
    report = json.loads(out.read_text())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "pruned")]
    assert [report["dense"]["file_bytes"], report["pruned"]["file_bytes"]] == sizes
    assert report["dense"]["peak_bytes"] == 500
    prints = [resolve(str(tmp_path / name)).fingerprint for name in ("dense", "pruned")]
    assert [report[name]["fingerprint"] for name in ("dense", "pruned")] == prints
    assert report["pruned"]["plan_sha256"] is None
    assert report["pruned"]["peak_bytes"] > 0
    # Two runs are too few to be believed, and the row says so.
    first = report["results"][0]["ttft"]
    assert not report["believed"] and not first["believed"] and "few" in first["flags"]
    assert "2 runs are too few for an interval of the median; take at least 6." in first["why"]
    assert "believed" in done.stdout and "Do not believe" in done.stdout
    assert report["results"][0]["load"]["seconds"] > 0 and report["load_before"]["cpus"] >= 1
    # $3.6 an hour are a thousandth of a dollar a second; 50 W of electricity at $0.36 a kWh are 5e-6.
    seconds = first["pruned"]["median"] + 2 * report["results"][0]["tpot"]["pruned"]["median"]
    (cost, *_) = report["cost"]["rows"]
    assert cost["utilisation"] == 1.0 and cost["dollars_per_request"]["pruned"] == pytest.approx(0.001 * seconds)
    assert cost["dollars_per_million_tokens"]["pruned"] == pytest.approx(1e6 * 0.001 * seconds / 3)
    assert report["energy"]["status"] == "estimated"
    power = report["cost"]["electricity_dollars_per_million_tokens"]["pruned"]
    assert power == pytest.approx(1e6 * 50 * seconds / 3 / 3.6e6 * 0.36)
    assert "≈" in done.stdout and "What it costs at $3.6 an hour" in done.stdout


@pytest.mark.parametrize(
    ("code", "said", "reason"), [(-9, "", "killed by signal 9"), (1, "Traceback\nIt broke\n", "It broke")]
)
def test_a_process_that_fails_to_measure_memory_is_one_sentence(monkeypatch, code, said, reason):
    monkeypatch.setattr(bench_memory, "run_python", lambda **options: Ended(code, "", said))
    with pytest.raises(PrunekitError, match=rf"peak memory of big failed \({reason}\); .* --no-memory"):
        measure_peak("big", FAST)


def test_the_decode_runtime_is_timed_through_the_same_interface(models):
    from prunekit.kernels.runtime.bench_runner import KernelRunner

    ids = prompt_ids(2, 12, VOCAB, 0).numpy()
    wanted = TorchRunner(models[1]).greedy(ids, 6)
    other = rebuilt_model(tiny_model("llama"), random_plan(models[2][0]))
    runner = KernelRunner(other)
    made = runner.greedy(ids, 6)
    assert made.tokens.tolist() == wanted.tokens.tolist()
    assert made.ttft > 0 and made.tpot > 0
    np.testing.assert_allclose(runner.logits(ids[0]), TorchRunner(models[1]).logits(ids[0]), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prices", "none.toml"), "does not exist"),
        (("--max-minutes", "-1"), "minutes of a measurement must be from 0"),
        (("--max-minutes", "nan"), "minutes of a measurement must be from 0"),
        (("--assume-watts", "0"), "watts that are assumed must be above 0"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_loaded(command, words, said):
    ended = command("bench", "no/model", "--baseline", "no/model", *words)
    assert ended.code == 2 and said in ended.err
