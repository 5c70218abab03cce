"""``prunekit report``: from models to a page, and how it ends where it can't."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import prunekit
from tests.support.command import Command, save_tiny, write_text
from tests.support.report_files import bench, candidates, edge_bench, evaluation, vllm, write

pytestmark = pytest.mark.usefixtures("single_threaded")


def test_from_models_to_a_page(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    dense = save_tiny(tmp_path / "dense", layers=2, max_position_embeddings=128)
    text, small = write_text(tmp_path / "own.txt"), tmp_path / "small"
    files = {name: tmp_path / f"{name}.json" for name in ("prune", "eval", "bench", "analyze")}
    asks = ("--set", "sequences=4", "--set", "length=16", "--set", "ffn_multiple=1", "--device", "cpu")
    pruned = command("prune", dense, "-o", small, "--blocks", 0.7, *asks, "--check", text, "--json")
    files["prune"].write_text(pruned.out)
    read = ("--text", text, "--length", 32, "--max-tokens", 512, "--device", "cpu", "--generate", "--prompts", 2)
    assert not command("eval", small, "--baseline", dense, *read, "--prompt-tokens", 8, "-o", files["eval"]).code
    few = ("--prompt-tokens", 8, "--new-tokens", 2, "--repeats", 2, "--warmup", 0, "--max-minutes", 0)
    timed = (*few, "--device", "cpu", "--no-memory")
    assert not command("bench", small, "--baseline", dense, *timed, "-o", files["bench"]).code
    assert not command("analyze", dense, *asks[:4], "--device", "cpu", "-o", files["analyze"]).code
    assert not command("export", small, "--to", "hf", "-o", tmp_path / "export").code
    page = tmp_path / "report.html"
    done = command("report", *files.values(), small, tmp_path / "export", "-o", page, "--json")
    assert not done.code, done.err
    rows = {(row["name"], row["form"]): row for row in done.json["rows"]}
    assert [*rows] == [("dense", "checkpoint"), ("small", "checkpoint"), ("small", "hf fp32")]
    row, whole = rows["small", "checkpoint"], json.loads(files["eval"].read_text())
    assert row["fingerprint"] == whole["origin"]["fingerprint"] == prunekit.resolve(str(small)).fingerprint
    # Every file names the weights, and the plan that they were made by.
    plan = hashlib.sha256((small / "plan.json").read_bytes()).hexdigest()
    timed_both = json.loads(files["bench"].read_text())
    manifest = json.loads((tmp_path / "export" / "prunekit-export.json").read_text())["source"]
    assert row["plan_sha256"] == whole["origin"]["plan_sha256"] == manifest["plan_sha256"] == plan
    assert [timed_both["pruned"][name] for name in ("fingerprint", "plan_sha256")] == [row["fingerprint"], plan]
    assert [timed_both["dense"][name] for name in ("fingerprint", "plan_sha256")] == [
        whole["origin"]["baseline_fingerprint"],
        None,
    ]
    assert manifest["pruned_from"] == {"name": "dense", "fingerprint": whole["origin"]["baseline_fingerprint"]}
    loss = row["decision"]["loss_added"]
    assert loss["value"] == whole["results"][0]["nll_increase"] and loss["low"] < loss["value"] < loss["high"]
    timed_ratio = json.loads(files["bench"].read_text())["results"][0]["tpot"]["ratio"]["median"]
    assert row["decision"]["tpot_ratio"]["value"] == timed_ratio
    size = sum(file.stat().st_size for file in small.glob("*.safetensors"))
    assert row["decision"]["file_bytes"] == {
        "setup": "checkpoints in 32 bits a weight",
        "value": size,
        "status": "exact",
        "how": "weight files",
        "files": ["bench.json", "small/prunekit.json"],
    }
    html = page.read_text()
    assert str(tmp_path) not in html and "matters most" in html and "greedy tokens" in html
    assert json.loads((tmp_path / "report.json").read_text())["summary"] == done.json["summary"]
    shown = command("report", *files.values(), small, "-o", page, "--overwrite")
    assert f"Page written to {page}" in "".join(shown.out.splitlines()) or "Page written to" in shown.out


def test_what_is_not_to_be_believed_says_so(command: Command, tmp_path: Path) -> None:
    data = bench()
    data["results"][0]["tpot"] |= {"believed": False, "why": ["Other processes took half of the time."]}
    tiny = bench(0.5, ttft=0.3, tpot=0.03)
    tiny["pruned"]["name"] = "tiny"
    files = [write(tmp_path / f"{name}.json", each) for name, each in (("a", data), ("b", tiny), ("c", edge_bench()))]
    done = command("report", *files, "-o", tmp_path / "r.html", "--json")
    # That two runs found different times is a contradiction; that a machine was busy is not.
    assert (
        len(done.json["contradictions"]) == 1
        and "a.json and b.json timed dense-model" in done.json["contradictions"][0]
    )
    (warning,) = done.json["warnings"]
    assert warning.startswith("a.json: the time of each further token by small at batch 1 is not to be believed: Other")
    page = (tmp_path / "r.html").read_text()
    assert "timed dense-model" in page and "Other processes took half of the time" in page
    shown = command("report", *files, "-o", tmp_path / "r.html", "--overwrite").out
    lines = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if "│" in line]
    told = {name: " ".join(each[5] for each in lines[at : at + 3]) for at, (_, name, *_) in enumerate(lines) if name}
    assert told["A"].startswith("0.800 ×, not believed") and told["C"].startswith("0.500 ×")
    alone = next(" ".join(each[4] for each in lines[at : at + 3]) for at, each in enumerate(lines) if each[1] == "B")
    assert alone.strip() == "50.0 ms, not compared"
    assert "Note: a.json and b.json" in shown and "Note: a.json: the time of each" in shown


def test_what_is_printed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text("dollars_per_hour = 2.0\nutilisation = 0.5\n")
    cand = candidates(tmp_path / "cand").parent
    done = command("report", cand, "-o", tmp_path / "r.html", "--prices", tmp_path / "prices.toml", "--title", "Ours")
    assert not done.code and "plan-0.8 (row B) is the only model found fine" in " ".join(done.out.split())
    assert "<h1>Ours</h1>" in (tmp_path / "r.html").read_text()


def test_what_is_refused(command: Command, tmp_path: Path) -> None:
    good, page = write(tmp_path / "eval.json", evaluation()), tmp_path / "r.html"
    (tmp_path / "prices.toml").write_text("dollars_an_hour = 2.0\n")
    load = write(tmp_path / "vllm.json", {name: each for name, each in vllm().items() if name != "model_id"})
    for arguments, says in (
        ((tmp_path / "none.json",), "does not exist"),
        ((good, write(tmp_path / "odd.json", {"a": 1})), "is of no kind that a report knows"),
        ((load,), "does not say which model was served"),
        ((good, "--prices", tmp_path / "prices.toml"), "dollars_an_hour"),
        ((good, "-o", tmp_path / "r.pdf"), "ends in .html"),
        ((good, "-o", tmp_path / "none" / "r.html"), "does not exist"),
        ((), "Missing argument"),
    ):
        done = command("report", *arguments, *(() if "-o" in arguments else ("-o", page)))
        assert done.code == 2 and says in done.err and "Traceback" not in done.err
        assert done.err.startswith("prunekit: ") and done.err.count("\n") == 1
    assert not [*tmp_path.glob("r.*")]


def test_an_earlier_page_is_replaced_only_where_that_is_said(command: Command, tmp_path: Path) -> None:
    first, second = write(tmp_path / "eval.json", evaluation()), write(tmp_path / "bench.json", bench())
    page = tmp_path / "r.html"
    assert not command("report", first, "-o", page).code
    before = page.read_bytes()
    done = command("report", first, second, "-o", page)
    assert done.code == 2 and "--overwrite" in done.err and page.read_bytes() == before
    assert not command("report", first, second, "-o", page, "--overwrite").code
    assert page.read_bytes() != before
