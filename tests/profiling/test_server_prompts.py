"""Prompts of a file: each is sent to a server once as long as there are enough, and the warm-up sends none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunekit.profiling.server.config import ServerConfig, Slo
from prunekit.profiling.server.run import bench_server
from prunekit.profiling.server.traces import load_workload
from tests.support.scripted_server import answer, scripted


def written(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"text number {each}"}) + "\n" for each in range(count)))
    return path


def test_no_text_is_sent_twice_while_there_are_others(tmp_path: Path) -> None:
    """480 prompts, as many blocks as the usual loads have, and both servers in turns."""
    made = load_workload(ServerConfig(prompts=written(tmp_path / "p.jsonl", 480)), "r")
    sent: dict[int, list[str | None]] = {0: [], 1: []}
    for load in ("closed loop, 1 at a time", "closed loop, 2 at a time", "open loop", "natural lengths"):
        for side in (0, 1, 1, 0):
            sent[side] += [job.prompt for job in made.take(f"{load} {len(sent[side])}", side, 30)]
    assert sent[0] == sent[1] and len(set(sent[0])) == 240 and made.repeated == 0
    # A search asks each server as often as it takes.
    for side, count in ((0, 60), (1, 240)):
        sent[side] += [job.prompt for job in made.take("search 0 0", side, count)]
    assert len(set(sent[1])) == 480 and len(set(sent[0])) == 300 and made.repeated == 0 and made.sent == 480
    assert [*made.take("search 0 1", 1, 39)] and (made.repeated, made.sent) == (39, 519)


def test_all_of_a_file_is_read(tmp_path: Path) -> None:
    """A search sends far more than the loads before it. A trace is read as a whole: its rows may be in any order."""
    path = written(tmp_path / "p.jsonl", 2000)
    assert len(load_workload(ServerConfig(prompts=path, requests=10), "r").jobs) == 2000
    path.write_text("".join(json.dumps({"ts": each, "n_in": 2, "n_out": 3}) + "\n" for each in range(50)))
    assert len(load_workload(ServerConfig(trace=path, requests=10), "r").jobs) == 50
    assert len(load_workload(ServerConfig(trace=path, requests=10, slo=Slo(ttft=100)), "r").jobs) == 50


def test_both_servers_get_the_same_texts_where_a_block_was_cut(tmp_path: Path) -> None:
    made = load_workload(ServerConfig(prompts=written(tmp_path / "p.jsonl", 100)), "r")
    cut = made.take("x 0", 0, 10)
    first = [next(cut).prompt for _ in range(3)]
    assert [job.prompt for job in made.take("x 0", 1, 10)][:3] == first
    assert [job.prompt for job in made.take("x 1", 0, 10)] == [job.prompt for job in made.take("x 1", 1, 10)]
    # What was not sent is not counted.
    assert made.sent == 20 and made.repeated == 0


def test_the_order_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", 50)
    a, b, c = (
        [job.prompt for job in load_workload(ServerConfig(prompts=path, seed=seed), "r").take("x", 0, 50)]
        for seed in (1, 1, 2)
    )
    assert a == b != c and len(set(a)) == 50 and a != sorted(a, key=lambda text: int((text or "").split()[-1]))


def test_a_trace_goes_on_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    rows = [{"prompt": f"text {each}", "ts": each, "n_in": 2, "n_out": 3} for each in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = load_workload(ServerConfig(trace=path), "r")
    replayed = [job.prompt for job in made.take("trace 0", 0, 4, first=0)]
    assert replayed == ["text 0", "text 1", "text 2", "text 3"]
    assert [job.prompt for job in made.take("search 0 0", 0, 3)] == ["text 4", "text 5", "text 6"]
    assert made.repeated == 0


@pytest.mark.parametrize("count", [100, 7])
def test_a_load_test_tells_how_many_texts_were_sent_again(tmp_path: Path, count: int) -> None:
    """The server tells no figures of a cache. Warm-up sends none of the file, and its texts are about as long."""
    path = written(tmp_path / "p.jsonl", count)
    config = ServerConfig(requests=6, blocks=2, concurrency=(1,), tokens=2, warmup=6, natural_tokens=0, prompts=path)
    with scripted(lambda body, _: answer(body["max_tokens"], ttft=0.004, tpot=0)) as server:
        report = bench_server(server.url, config=config)
    texts = [body["prompt"] for body in server.seen]
    own = [text for text in texts if text.startswith("text number")]
    assert len(texts) > len(own) == 12 and all(2 <= len(text.split()) <= 6 for text in texts[:4])
    assert len(set(own)) == min(12, count)
    said = [note for note in report.notes if "sent a text of the file again" in note]
    assert bool(said) == (count < 12)
    if said:
        assert said[0].startswith("5 of 12 requests") and "a file of at least 12 texts" in said[0]
