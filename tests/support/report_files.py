"""Small files of every kind that a report reads, as their programs write them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from prunekit.plan import Plan
from prunekit.plan.shape import LayerShape, ModelShape
from tests.support.operate_files import acceptance, server_bench, watch
from tests.support.tiny import random_plan

DENSE, PRUNED = "aa" * 32, "bb" * 32
MACHINE = {"cpu": "Test CPU", "threads": 2, "device": "cpu", "torch": "2.13.0", "python": "3.11"}


def write(file: Path, data: Any) -> Path:
    file.write_text(json.dumps(data))
    return file


def result(text: str = "held.jsonl", added: float = 0.2, **changes: Any) -> dict[str, Any]:
    """What eval says of one text."""
    return {
        "text": text,
        "tokens_seen": 2048,
        "tokens_predicted": 2044,
        "windows": 4,
        "length": 512,
        "stride": 512,
        "window_start": None,
        "nll": 3.2 + added,
        "nll_standard_error": 0.1,
        "perplexity": 24.5,
        "baseline_nll": 3.2,
        "baseline_perplexity": 24.5,
        "nll_increase": added,
        "nll_increase_standard_error": 0.01,
        "kl": 0.25,
        "agreement": 0.7,
        **changes,
    }


def evaluation(model: str = "small", *results: dict[str, Any], fingerprint: str | None = PRUNED, **changes: Any) -> Any:
    origin = {
        "fingerprint": fingerprint,
        "baseline_fingerprint": DENSE,
        "token_ids_sha256": {"held.jsonl": "cd" * 32},
        "machine": MACHINE,
    }
    return {
        "format": "prunekit-report",
        "model": model,
        "baseline": "dense-model",
        "dtype": "float32",
        "device": "cpu",
        "results": list(results) or [result()],
        **({} if fingerprint is None else {"origin": origin}),
        **changes,
    }


def generated(prompt: str, text: str = "builtin") -> dict[str, Any]:
    """What --generate adds."""
    examples = [{"prompt": prompt, "model": "the same and then other", "baseline": "the same and then more"}]
    return {"generation": [{"text": text}], "examples": examples}


def _summary(median: float) -> dict[str, Any]:
    return {"median": median, "p20": median * 0.98, "p80": median * 1.02, "count": 10}


def bench(ratio: float = 0.8, ttft: float = 0.1, tpot: float = 0.01, **changes: Any) -> Any:
    def phase(seconds: float) -> dict[str, Any]:
        return {
            "dense": _summary(seconds),
            "pruned": _summary(seconds * ratio),
            "ratio": _summary(ratio),
            "ideal_ratio": 0.75,
            "verdict": "faster",
        }

    facts = {"weight_bytes": 4000, "kv_bytes_per_token": 100, "decode_bytes": 3900, "peak_bytes": 9000}
    return {
        "format": "prunekit-report",
        "dense": {"name": "dense-model", "parameters": 1000, "file_bytes": 4000, **facts},
        "pruned": {"name": "small", "parameters": 800, "file_bytes": 3200, **facts, "peak_bytes": 8000},
        "results": [{"batch": 1, "ttft": phase(ttft), "tpot": phase(tpot)}],
        "config": {"batch": [1], "prompt": 128, "tokens": 32, "repeats": 10, "warmup": 2, "threads": 2, "seed": 0},
        "machine": MACHINE,
        "runtime": "torch",
        "dtype": "float32",
        "peak_how": "peak of a process",
        **changes,
    }


def edge_bench(**changes: Any) -> Any:
    """As bench.py of an export writes it."""

    def timed(median: float) -> dict[str, Any]:
        return {
            **_summary(median),
            "interval": [median * 0.99, median * 1.01],
            "believed": True,
            "flags": [],
            "why": [],
        }

    return {
        "format": "prunekit-bench-edge",
        "version": 1,
        "export": {
            "target": "gguf",
            "dtype": "q8_0",
            "name": "small",
            "fingerprint": PRUNED,
            "manifest_sha256": "ab" * 32,
            "device": "cpu",
        },
        "machine": {"cpu": "Test CPU", "logical_cpus": 2, "os": "Linux", "python": "3.11"},
        "packages": {"llama-cpp-python": "0.3.36"},
        "device": "cpu",
        "config": {"prompt_tokens": 128, "new_tokens": 32, "repeats": 10, "warmup": 2, "threads": 2},
        "ttft": timed(0.05),
        "tpot": timed(0.005),
        "peak_bytes": 7000,
        "load": {"others": 0.0, "cpus": 2},
        "believed": True,
        **changes,
    }


def figure(value: float | None, status: str = "measured", low: float | None = None, high: float | None = None) -> Any:
    return {"value": value, "status": status, "low": low, "high": high, "how": "as the test says"}


def tiny_plan() -> Plan:
    return random_plan(ModelShape(64, 16, 128, False, (LayerShape(8, 4, 96),) * 2))


def candidates(folder: Path, **changes: Any) -> Path:
    """candidates.json in ``folder``, with the plan of its one pruned row."""
    folder.mkdir(exist_ok=True)
    plan = tiny_plan()
    plan.save(folder / "plan-0.8.json", overwrite=True)
    digest = hashlib.sha256((folder / "plan-0.8.json").read_bytes()).hexdigest()
    unknown = figure(None, "not measured")

    def row(name: str, kind: str, dtype: str, loss: Any, size: float, ratio: Any, verdict: str | None) -> Any:
        pruned = kind in ("prune", "both")
        return {
            "name": name,
            "kind": kind,
            "plan": "plan-0.8.json" if pruned else None,
            "plan_sha256": digest if pruned else None,
            "dtype": dtype,
            "figures": {
                "parameters": figure(800 if pruned else 1000, "exact"),
                "loss_added": loss,
                "file_bytes": figure(size, "exact"),
                "users": figure(12, "exact"),
                "ttft_ratio": ratio,
                "tpot_ratio": ratio,
                "kl": unknown,
            },
            "verdict": verdict,
            "pareto": True,
        }

    data = {
        "format": "prunekit-candidates",
        "version": 1,
        "model": {"name": "dense-model", "fingerprint": DENSE, "parameters": 1000, "family": "llama"},
        "machine": MACHINE,
        "versions": {"prunekit": "0.1.0"},
        "calibration": {"source": "own.jsonl", "text_sha256": "ef" * 32},
        "evaluation": {
            "source": "held.jsonl",
            "tokens": 8192,
            "length": 512,
            "stride": 512,
            "dtype": "float32",
            "device": "cpu",
            "token_ids_sha256": "cd" * 32,
        },
        "for": "gguf:q4_k_m",
        "context": 2048,
        "memory_bytes": 8_000_000_000,
        "rows": [
            row("dense", "dense", "bfloat16", figure(0.0, "exact"), 2000, figure(1.0, "exact"), None),
            row(
                "0.8",
                "prune",
                "bfloat16",
                figure(0.08, "measured", 0.07, 0.09),
                1600,
                figure(0.82, "predicted"),
                "fine",
            ),
            row("quantised", "quantise", "q4_k_m", figure(0.12, "measured", 0.1, 0.14), 600, unknown, "costs quality"),
            row("both", "both", "q4_k_m", figure(0.3, "predicted", 0.2, 0.4), 500, unknown, "costs quality"),
        ],
        "not_measured": ["Latency of quantised models: no runtime is installed."],
        **changes,
    }
    return write(folder / "candidates.json", data)


def vllm(**changes: Any) -> Any:
    """As `vllm bench serve --save-result` writes it."""
    return {
        "backend": "openai",
        "model_id": "/models/small",
        "num_prompts": 100,
        "request_rate": "inf",
        "max_concurrency": 8,
        "duration": 20.0,
        "completed": 100,
        "failed": 0,
        "total_input_tokens": 102_400,
        "total_output_tokens": 20_000,
        "request_throughput": 5.0,
        "output_throughput": 1000.0,
        "mean_ttft_ms": 60.0,
        "median_ttft_ms": 50.0,
        "p99_ttft_ms": 200.0,
        "median_tpot_ms": 8.0,
        "p99_tpot_ms": 12.0,
        **changes,
    }


def aiperf(**changes: Any) -> Any:
    """As AIPerf writes profile_export_aiperf.json."""

    def of(unit: str, **statistics: float) -> dict[str, Any]:
        return {"unit": unit, **statistics}

    return {
        "schema_version": "1.4",
        "aiperf_version": "0.13.0",
        "input_config": {
            "models": {"items": [{"name": "org/small"}]},
            "phases": [
                {"name": "warmup", "type": "concurrency", "concurrency": 1},
                {"name": "profiling", "type": "concurrency", "concurrency": 16},
            ],
        },
        "request_count": of("requests", avg=200),
        "request_throughput": of("requests/sec", avg=5.5),
        "output_token_throughput": of("tokens/sec", avg=1100.0),
        "time_to_first_token": of("ms", avg=70, p50=55.0, p99=210.0),
        "inter_token_latency": of("ms", avg=9, p50=8.5, p99=15.0),
        "request_latency": of("ms", avg=1800, p50=1750.0, p99=2500.0),
        "input_sequence_length": of("tokens", avg=1000.4),
        "output_sequence_length": of("tokens", avg=199.7),
        "was_cancelled": False,
        **changes,
    }


def guidellm(**changes: Any) -> Any:
    """As guidellm writes its report, version 2."""

    def of(mean: float, median: float | None = None) -> dict[str, Any]:
        told = {"mean": mean, "median": mean if median is None else median, "percentiles": {"p99": 3 * mean}}
        return {"successful": told, "errored": None, "incomplete": None, "total": told}

    run = {
        "type_": "generative_benchmark",
        "config": {"strategy": {"type_": "poisson", "rate": 4.0}, "backend": {"model": "small"}},
        "metrics": {
            "request_totals": {"successful": 98, "errored": 2, "incomplete": 0, "total": 100},
            "requests_per_second": of(3.9),
            "request_latency": of(1.8),
            "prompt_token_count": of(512.0),
            "output_token_count": of(128.0),
            "time_to_first_token_ms": of(80.0, 70.0),
            "inter_token_latency_ms": of(9.0, 8.0),
            "output_tokens_per_second": of(500.0),
        },
    }
    return {"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "config": {}, "benchmarks": [run], **changes}


def summary_of_prune() -> Any:
    """As `prune --json` prints it."""
    return {
        "checkpoint": "/home/somebody/secret/small",
        "layout": "per-layer",
        "share_of_blocks": 0.8,
        "dense": {"parameters": 1000},
        "pruned": {"parameters": 800, "weight_bytes": 3200, "kv_bytes_per_token": 80},
        "method": {"name": "prunekit"},
        "target": {"asked": "--blocks 0.8"},
        "check": {
            "verdict": "costs quality",
            "text": "builtin",
            "loss_added": 0.3,
            "standard_error": 0.02,
            "agreement": 0.66,
            "tokens": 4096,
            "seconds": 20.0,
            "examples": [{"prompt": "Once", "model": "upon a time", "baseline": "upon a day"}],
        },
    }


def analysis() -> Any:
    return {
        "format": "prunekit-report",
        "model": "dense-model",
        "layer_importance": "cosine",
        "meaning": "1 minus the cosine",
        "layers": [{"index": 0, "words": "matters most"}, {"index": 1, "words": "matters least"}],
        "calibration": {"source": "builtin", "text_sha256": "12" * 32},
        "versions": {"prunekit": "0.1.0"},
    }


def all_files(folder: Path) -> list[Path]:
    """One of each kind that is a single file."""
    tiny_plan().save(folder / "plan.json", overwrite=True)
    made = {
        "eval.json": evaluation(**generated("Once upon")),
        "bench.json": bench(),
        "edge.json": edge_bench(),
        "vllm.json": vllm(),
        "aiperf.json": aiperf(),
        "guidellm.json": guidellm(),
        "prune.json": summary_of_prune(),
        "analysis.json": analysis(),
        "serve.json": server_bench(),
        "accept.json": acceptance(),
        "watch.json": watch(),
    }
    return [
        *(write(folder / name, data) for name, data in made.items()),
        folder / "plan.json",
        candidates(folder / "cand"),
    ]
