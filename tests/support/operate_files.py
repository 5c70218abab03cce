"""Small files of what proves and watches a model, as prunekit's commands write them."""

from __future__ import annotations

from typing import Any

DENSE, PRUNED = "aa" * 32, "bb" * 32


def quantiles(seconds: float, count: int = 60) -> list[dict[str, Any]]:
    """p50, p95 and p99 of ``count`` requests: too few for p99."""
    return [
        {
            "share": share,
            "value": seconds * (1 + share),
            "low": seconds,
            "high": None if share == 0.99 else 3 * seconds,
            "count": count,
            "failed": [],
            "status": "too few" if share == 0.99 else "measured",
            "how": "order statistics; each bound holds with 95 %",
        }
        for share in (0.5, 0.95, 0.99)
    ]


def loaded(kind: str, seconds: float, **changes: Any) -> dict[str, Any]:
    """One model at one load."""
    return {
        "load": {"kind": kind, "concurrency": 2, "rate": None, "name": f"{kind} load"},
        "requests": 60,
        "failed": 0,
        "errors": {},
        "seconds": 10.0,
        "requests_per_second": 1 / seconds,
        "tokens_per_second": 16 / seconds,
        "goodput": 1 / seconds,
        "good_share": 1.0,
        "ttft": quantiles(seconds),
        "tpot": quantiles(seconds / 10),
        "e2e": quantiles(3 * seconds),
        "gap": quantiles(seconds / 10),
        "prompt_tokens": 32.0,
        "tokens": 16.0,
        "length_ratio": 1.0,
        "truncated": 0.25,
        "lag_p99": 0.001,
        "client_cpu": 0.1,
        "cut": False,
        "void": [],
        "notes": [],
        "status": "measured",
        **changes,
    }


def ratio(value: float | None, count: int = 4) -> dict[str, Any]:
    bounds = (None, None) if value is None or count < 2 else (0.9 * value, 1.1 * value)
    return {"value": value, "low": bounds[0], "high": bounds[1], "count": count, "status": "measured", "how": "blocks"}


def load(kind: str, **changes: Any) -> dict[str, Any]:
    """Both models at one load, the smaller one faster by a fifth."""
    ratios = {"ttft": ratio(0.8), "tpot": ratio(0.8), "tokens": ratio(1.2), "requests_per_second": ratio(1.25)}
    return {
        "load": f"{kind} load",
        "baseline": loaded(kind, 0.1),
        "endpoint": loaded(kind, 0.08),
        "ratios": ratios,
        **changes,
    }


def spent(token: float | None = 2.0, above: float | None = 1.0, why: str = "there is no counter") -> dict[str, Any]:
    """What bench-server --energy adds to a load, for one model."""

    def known(value: float | None) -> dict[str, Any]:
        status = "not measured" if value is None else "measured"
        ends = (None, None) if value is None else (0.9 * value, 1.1 * value)
        how = why if value is None else "zeus, gpu board; 4 windows, 60 s"
        return {"value": value, "low": ends[0], "high": ends[1], "status": status, "how": how}

    return {
        "per_token": known(token),
        "per_request": known(None if token is None else 16 * token),
        "above_idle_per_token": known(above),
        "above_idle_per_request": known(None if above is None else 16 * above),
        "idle_watts": known(50.0),
        "method": "zeus, gpu board",
    }


def searched(rate: float | None, status: str = "found") -> dict[str, Any]:
    blocks = [] if rate is None else [0.9 * rate, 1.1 * rate]
    return {
        "rate": rate,
        "status": status,
        "words": f"{rate} requests/s" if rate is not None else "the SLO is not met at any load that was tried",
        "blocks": [{"status": status, "rate": each, "probes": []} for each in blocks],
    }


def capacity(dense: float | None = 4.0, smaller: float | None = 5.0, **changes: Any) -> dict[str, Any]:
    both = dense is not None and smaller is not None
    return {
        "slo": {"ttft_ms": 500.0, "tpot_ms": 50.0, "percentile": 95.0},
        "endpoints": [searched(each, "found" if each is not None else "never met") for each in (dense, smaller)],
        "ratio": ratio(smaller / dense if both else None),  # type: ignore[operator]
        **changes,
    }


def cost() -> dict[str, Any]:
    """What bench-server --prices adds."""

    def known(value: float | None) -> dict[str, Any]:
        status = "not measured" if value is None else "estimated"
        return {"value": value, "low": None, "high": None, "status": status, "how": "as the test says"}

    def at(used: float, dollars: float) -> dict[str, Any]:
        per_request = known(dollars / used)
        return {
            "utilisation": used,
            "per_million_tokens": known(None),
            "per_request": per_request,
        }

    sides = {"baseline": 1.25e-4, "endpoint": 1e-4}
    endpoints = {name: [at(used, dollars) for used in (1.0, 0.5)] for name, dollars in sides.items()}
    return {"endpoints": endpoints, "allowed_rework_points": known(0.125)}


def served(name: str, digest: str, server: str = "transformers") -> dict[str, Any]:
    """One side of a load test, served on the loopback interface."""
    identity = {
        "server": server,
        "version": "5.23.0",
        "argv": [],
        "model": name,
        "model_sha256": digest,
        "context": 2048,
        "threads": 1,
        "slots": None,
    }
    return {
        "model": name,
        "label": "127.0.0.1:1234",
        "identity": identity,
        "warmup_requests": 9,
        "warmup_steady": True,
        "warmup_medians": [0.1],
        "exact": True,
        "cache_queries": None,
        "cache_hits": None,
    }


def server_bench(**changes: Any) -> Any:
    """serve.json."""
    return {
        "format": "prunekit-server-bench",
        "version": 1,
        "status": "measured",
        "stopped": None,
        "believed": True,
        "served": {"baseline": served("dense-model", DENSE), "endpoint": served("small", PRUNED)},
        "loads": [load("closed"), load("open"), load("natural", load="natural lengths, 2 at a time")],
        "capacity": capacity(),
        "workload": {"kind": "synthetic", "label": "synthetic (made up by prunekit)", "bad_lines": 0},
        "config": {"requests": 60, "blocks": 4, "prompt": 32, "tokens": 16},
        "machine": {"cpu": "Test CPU", "os": "Linux", "python": "3.11", "httpx": "0.28"},
        "notes": [],
        "seconds": 100.0,
        **changes,
    }


def _figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    status = "not measured" if value is None else "measured"
    return {"value": value, "low": low, "high": high, "status": status, "how": "as the test says"}


def compared(records: int = 200, **changes: Any) -> dict[str, Any]:
    """Both models on the same records."""
    return {
        "records": records,
        "effective": float(records),
        "error_rate": _figure(0.12, 0.08, 0.17),
        "baseline_error_rate": _figure(0.1, 0.06, 0.15),
        "difference": _figure(0.02, -0.01, 0.05),
        "worse": 7,
        "better": 3,
        "flips": _figure(0.05, 0.02, 0.09),
        "mcnemar_p": 0.34,
        "length_ratio": _figure(1.1, 1.0, 1.2),
        "unit": "tokens",
        "truncated": _figure(0.03, 0.01, 0.06),
        "baseline_truncated": _figure(0.02, 0.01, 0.05),
        "failed": 0,
        "baseline_failed": 0,
        "noninferiority": {
            "margin": 0.02,
            "alpha": 0.05,
            "power": 0.8,
            "p": 0.5,
            "how": "exact",
            "needed": 1500,
            "enough": False,
            "shown": False,
        },
        **changes,
    }


def acceptance(**changes: Any) -> Any:
    """accept.json, with the texts of its one worst record."""
    texts = {
        "asked": [{"role": "user", "content": "my secret question"}],
        "check": "exact",
        "references": ["my secret reference"],
        "answer": "my secret answer",
        "baseline": None,
    }
    sentence = "The error rate rises by +2.0 points; a rise below 2 points is not shown. Too few."
    return {
        "format": "prunekit-accept",
        "version": 1,
        "verdict": "too few to tell",
        "exit_code": 3,
        "reasons": [sentence],
        "conditions": [
            {"name": "margin", "group": None, "value": 0.02, "limit": 0.02, "holds": None, "sentence": sentence}
        ],
        "all": compared(),
        "groups": {"sums": compared(80, noninferiority=None)},
        "worst": [
            {
                "id": "sum-3",
                "group": "sums",
                "weight": 1.0,
                "why": "wrong",
                "length": 4,
                "baseline_length": 3,
                "texts": texts,
            }
        ],
        "policy": {"given": False, "margin": 0.02, "alpha": 0.05, "power": 0.8, "too_few": "refuse", "groups": {}},
        "smaller": {"model": "small", "fingerprint": PRUNED, "parameters": 800, "dtype": "float32", "device": "cpu"},
        "baseline": {"model": "dense-model", "fingerprint": DENSE, "parameters": 1000},
        "records": {"count": 200, "sha256": "ab" * 32, "weighted": False},
        "run": {"max_new_tokens": 64, "seconds": 10.0, "machine": {"cpu": "Test CPU", "device": "cpu"}, "versions": {}},
        **changes,
    }


def _signal(name: str, kind: str, title: str, **changes: Any) -> dict[str, Any]:
    null = {"mean": 0.1, "sd": 0.01, "windows": 40, "typical": 0.02, "transform": "log"}
    return {
        "name": name,
        "kind": kind,
        "title": title,
        "reason": None,
        "status": "calibrated",
        "null": null,
        "limit": 9.0,
        "finds": None,
        **changes,
    }


def _recent(window: int, total: float) -> dict[str, Any]:
    return {
        "window": window,
        "last": 1_760_000_000.0 + 3600 * window,
        "verdict": "ok",
        "values": {"shadow_kl": 0.1},
        "sums": {"shadow_kl": total},
    }


def watch(**changes: Any) -> Any:
    """watch.json of a model whose shadow KL is up since window 3."""
    row = {"value": 0.25, "z": 5.0, "sum": 13.0, "limit": 9.0, "active": True}
    row |= {"details": {"requests": 20, "standard_error": 0.01}}
    signals = {
        "shadow_kl": row,
        "shadow_disagreement": {**row, "value": 0.3, "sum": 1.0, "active": False},
        "latency": {"value": None, "reason": "the log tells no latencies"},
    }
    reason = "shadow_kl: KL is up: 0.25 in this window, 0.02 in the reference."
    alarm = {"verdict": "investigate", "window": 3, "requests": 600, "began": "2026-01-01T00:00:00Z", "ended": None}
    return {
        "format": "prunekit-watch",
        "version": 1,
        "verdict": "investigate",
        "reasons": [reason],
        "do": "Compare the served weights with those of the release.",
        "alarm": alarm,
        "windows": 4,
        "requests": 800,
        "alarms": 1,
        "alarms_held_back": 0,
        "telling_failures": 0,
        "log": {"lines": 805, "requests": 800, "problems": {"broken": {"lines": 5, "first": ["a.jsonl:7"]}}},
        "last_window": {
            "window": 4,
            "requests": 800,
            "first": 1_760_000_000.0,
            "last": 1_760_014_400.0,
            "verdict": "investigate",
            "reasons": [reason],
            "signals": signals,
            "outcomes": {"told": 10, "wrong": 1, "reworked": 1},
        },
        "changes": [
            {"window": 3, "requests": 600, "last": 1_760_010_800.0, "verdict": "investigate", "reasons": [reason]}
        ],
        "recent": [_recent(1, 0.0), _recent(2, 6.0), _recent(3, 10.0), _recent(4, 13.0)],
        "outcomes": {
            "error": {
                "what": "answers rejected",
                "bound": 0.05,
                "how": "as you said",
                "reference": 0.03,
                "seen": 400,
                "bad": 16,
            },
            "rework": {"what": "answers reworked", "bound": None, "how": "off", "reference": None, "seen": 0, "bad": 0},
        },
        "signals": [
            _signal("latency", "load", "latency, ms"),
            _signal("shadow_kl", "quality", "KL of the dense model from the deployed one"),
            _signal("shadow_disagreement", "quality", "share of other first choices"),
            _signal("prompt_mmd", "input", "distance of prompts", status="off", null=None, reason="no model"),
        ],
        "config": {"window": 200, "false_alarms": 1.0, "alpha": 0.05},
        "requests_per_day": 2000.0,
        "models": {"model": "small", "dense": "dense-model"},
        "baseline_log": {"requests": 8000, "windows": 40, "first": 1_750_000_000.0, "last": 1_750_345_600.0},
        "versions": {"prunekit": "0.1.0"},
        **changes,
    }
