"""`python -m benchmarks.server`: what is compared, that a run cut short goes on, and the client's clock. vLLM itself is
run by tests/vllm_real; a stand-in takes its place here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.models.shapes import MODELS, TINY
from benchmarks.server import engine, run, serve
from benchmarks.server.announce import PLUGIN, announce
from benchmarks.server.arms import ARMS, Arm, arm_shapes, write_arm
from benchmarks.server.load import Load, Served, arrivals, summarize
from benchmarks.server.run import Settings, in_turns, measure
from benchmarks.server.tables import table

SMALL = Settings(batches=(1, 2), prompts=(8,), new=4, repeats=1, rates=(float("inf"),), kv_bytes=10**6, limit_s=60)


def test_arms_are_as_large_as_each_other():
    dense = MODELS["llama-3.1-8b"].shape
    shapes = arm_shapes(dense, 40)
    assert tuple(shapes) == ARMS and shapes["dense"] == dense
    for name in ARMS[1:]:
        assert shapes[name].block_parameters / dense.block_parameters == pytest.approx(0.6, abs=0.003)
    assert all(layer.intermediate_size % 64 == 0 for layer in shapes["rounded"].layers)
    assert shapes["homogeneous"].is_uniform and shapes["homogeneous"].layers[0].num_attention_heads == 32
    assert any(layer.intermediate_size % 8 for layer in shapes["irregular"].layers)


def test_configs_name_what_vllm_runs(tmp_path):
    shapes = arm_shapes(TINY.shape, 40)
    for name, architecture in (("dense", "Qwen2ForCausalLM"), ("irregular", "PrunedQwen2ForCausalLM")):
        arm = write_arm(TINY, name, shapes[name], tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architectures"] == [architecture] and config["dtype"] == "bfloat16"
        assert arm.decode_bytes == shapes[name].decode_bytes(2) and arm.implementation == "auto"
    assert config["per_layer_config"]
    assert Arm("irregular@transformers", tmp_path, 1).implementation == "transformers"


def test_turns_wrong_nobody(tmp_path):
    arms = [Arm(name, tmp_path, 1) for name in "abc"]
    assert [(arm.name, turn) for arm, turn in in_turns(arms)] == [
        *(("a", 0), ("b", 0), ("c", 0)),
        *(("c", 1), ("b", 1), ("a", 1)),
    ]


@pytest.mark.parametrize("mode", engine.MODES)
def test_settings_of_engine_and_server_are_the_same(mode, tmp_path):
    job = {**SMALL.__dict__, "mode": mode, "folder": "model", "implementation": "auto"}
    given = engine.engine_settings(job)
    assert given["kv_cache_memory_bytes"] == 10**6 and "gpu_memory_utilization" not in given
    assert given["max_model_len"] == 12 and given["enable_prefix_caching"] is False
    if mode == "graphs":
        assert given["compilation_config"]["cudagraph_capture_sizes"] == [1, 2]
        assert "cudagraph_capture_sizes" not in engine.MODES["graphs"]["compilation_config"]
    command = serve.command(job, 81)
    assert "--no-enable-prefix-caching" in command and "--skip-tokenizer-init" in command
    assert ("--enforce-eager" in command) == (mode == "eager")
    assert command[command.index("--max-model-len") + 1] == "12"


def test_the_plugin_is_found_from_the_source_tree(tmp_path):
    found = announce(tmp_path)
    code = (
        "import importlib.metadata, prunekit.export, prunekit.kernels\n"
        "(entry,) = importlib.metadata.entry_points(group='vllm.general_plugins', name='prunekit')\n"
        "print(entry.value, entry.load().__name__, prunekit.export.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=found, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [PLUGIN, "register", str(tmp_path / "prunekit" / "export" / "__init__.py")]


STAND_IN = '''
"""What benchmarks.server.engine does with a job, without vLLM: two rows, or as the folder's name says."""
import json, sys, time
job = json.loads(open(sys.argv[1]).read())
def write(report): open(job["out"], "w").write(json.dumps(report))
tpot = 0.1 if "dense" in job["folder"] else 0.08
rows = [{"batch": b, "prompt": 8, "new": 4, "ttft_s": 0.5, "tpot_s": tpot, "tokens_per_s": 10.0} for b in (1, 2)]
write({"startup_s": 1.0, "rows": rows[:1]})
if "hangs" in job["folder"]: time.sleep(600)
if "dies" in job["folder"]: sys.exit("out of memory")
write({"startup_s": 1.0, "kv_tokens": 1234, "weight_bytes": 2**20, "rows": rows})
'''


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    site = tmp_path / "stand_in"
    site.mkdir()
    (site / "stand_in_engine.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setitem(run.KINDS, "offline", "stand_in_engine")


def test_failures_cost_their_own_run_and_are_tried_again(tmp_path, stand_in):
    arms = [Arm("dense", Path("/dense"), 300), Arm("hangs", Path("/hangs"), 200), Arm("dies", Path("/dies"), 150)]
    settings = Settings(**{**SMALL.__dict__, "limit_s": 3.0})
    out = tmp_path / "out.json"
    report = measure("offline", arms, settings, out, twice=False)
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    dense, hangs, dies = report["runs"]
    assert len(dense["rows"]) == 2 and dense["kv_tokens"] == 1234
    assert hangs["problem"] == "took more than 3 s" and len(hangs["rows"]) == 1
    assert dies["problem"] == "ended with code 1" and "out of memory" in dies["log"]
    told = []
    arms = [arms[0], Arm("fine", Path("/fine"), 150)]
    again = measure("offline", arms, settings, out, twice=False, tell=told.append)
    assert [line.partition(",")[0] for line in told] == ["fine"]
    shown = table(again)
    # 0.1 s over 0.08 s, beside 300 bytes over 150.
    assert "| 8 | 1 | fine | 500.00 | 80.000 | 10 | 1.250 | 2.000 | 0.62 |" in shown
    assert "KV cache for 1,234 tokens" in shown


def test_nothing_begins_without_time_left(tmp_path, stand_in):
    report = measure("offline", [Arm("dense", Path("/dense"), 1)], SMALL, tmp_path / "out.json", budget_s=0.0)
    assert report["runs"] == []


def test_arrivals_are_random_at_the_rate_asked_for():
    due = arrivals(Load(rate=5.0, requests=4000, prompt=1, new=1))
    gaps = [after - before for before, after in zip(due, due[1:], strict=False)]
    assert due[0] == 0 and due == sorted(due)
    assert sum(gaps) / len(gaps) == pytest.approx(0.2, rel=0.05)
    # Exponential: a share of exp(-1) of the gaps is longer than the mean.
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)
    assert arrivals(Load(float("inf"), 3, 1, 1)) == [0.0] * 3


def test_a_summary_counts_whole_answers_alone():
    served = [
        Served(0.0, 0.1, 0.4, 4),
        Served(0.2, 0.3, 0.9, 4),
        Served(0.0, problem="status 500: no"),
        Served(0.0, 0.1, 0.1, 2),
    ]
    row = summarize(Load(2.0, 4, 8, 4), served, took_s=2.0)
    assert (row["completed"], row["tokens_per_s"], row["late_s"]) == (2, 4.0, 0.2)
    assert row["ttft_s"] == pytest.approx(0.2) and row["tpot_s"] == pytest.approx(0.15)
    assert row["problems"] == ["status 500: no"]


def test_capacity_is_read_off_the_metrics():
    line = 'vllm:cache_config_info{block_size="32",num_gpu_blocks="1000",num_gpu_blocks_override="None"} 1.0'
    assert serve.kv_tokens(f"# HELP\n{line}\n") == 32_000
    assert serve.kv_tokens("") is None


def test_the_client_times_a_stream(monkeypatch):
    """Three chunks 50 ms apart and one with the count, through an HTTP server of aiohttp."""
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    from benchmarks.server.load import drive

    asked = []

    async def complete(request):
        asked.append(await request.json())
        answer = web.StreamResponse()
        await answer.prepare(request)
        for index in range(3):
            await asyncio.sleep(0.05)
            await answer.write(f"data: {json.dumps({'choices': [{'text': '', 'index': index}]})}\n\n".encode())
        await answer.write(f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': 3}})}\n\n".encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def both():
        application = web.Application()
        application.router.add_post("/v1/completions", complete)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port := serve.free_port())
        await site.start()
        row = await drive(f"http://127.0.0.1:{port}", Load(float("inf"), 3, 5, 3), 100, 0, 30.0)
        await runner.cleanup()
        return row

    row = asyncio.run(both())
    assert aiohttp and row["completed"] == 3 and row["rate"] == "inf" and "problems" not in row
    assert 0.045 < row["ttft_s"] < 1.0 and 0.04 < row["tpot_s"] < 0.5
    assert len({tuple(each["prompt"]) for each in asked}) == 3 and all(len(each["prompt"]) == 5 for each in asked)
    assert asked[0]["temperature"] == 0 and asked[0]["ignore_eos"] is True


def test_a_row_of_the_engine(monkeypatch):
    """TPOT is what each token after the first adds."""

    class Engine:
        def __init__(self, folder, **settings):
            assert settings["load_format"] == "dummy"
            cache = SimpleNamespace(num_gpu_blocks=10, block_size=16)
            model = SimpleNamespace(get_vocab_size=lambda: 50, architecture="PrunedQwen2ForCausalLM")
            self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache, model_config=model))

        def apply_model(self, function):
            return [77]

        def generate(self, prompts, params, use_tqdm):
            clock[0] += 1.0 + 0.25 * (params.max_tokens - 1)
            output = SimpleNamespace(token_ids=list(range(params.max_tokens)))
            return [SimpleNamespace(outputs=[output]) for _ in prompts]

    clock = [0.0]
    vllm = SimpleNamespace(LLM=Engine, SamplingParams=lambda **fields: SimpleNamespace(**fields), __version__="0")
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])
    reports = []
    job = {**SMALL.__dict__, "folder": "model", "implementation": "auto"}
    engine.measure(job, lambda report: reports.append(json.loads(json.dumps(report))))
    assert [len(report["rows"]) for report in reports] == [0, 1, 2]
    assert reports[0]["kv_tokens"] == 160 and reports[0]["weight_bytes"] == 77
    first, second = reports[-1]["rows"]
    assert (first["ttft_s"], first["tpot_s"]) == pytest.approx((1.0, 0.25))
    assert second["tokens_per_s"] == pytest.approx(2 * 4 / 1.75)
