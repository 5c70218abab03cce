"""What asks servers, at real ones with tiny models: llama-cpp-python's and `transformers serve`, each started once."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.run import accept
from prunekit.monitoring.scoring.contexts import Context
from prunekit.monitoring.scoring.endpoint import DenseServer
from prunekit.profiling.loopback import Server, served
from prunekit.profiling.loopback import commands as commands_module
from prunekit.profiling.loopback import installed as installed_module
from prunekit.profiling.server.config import ServerConfig, Slo
from prunekit.profiling.server.run import bench_server
from prunekit.utils.endpoints.endpoint import Endpoint
from tests.support.command import ROOT, Command, save_tiny
from tests.support.export_models import save_uneven

EXPORT = ROOT / "tests" / "golden" / "written" / "exports" / "gguf"
TOKENS = 3


class Both(NamedTuple):
    """The servers, and the files that they serve."""

    llama: Server
    transformers: Server
    checkpoint: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    for package in (*installed_module._OF_LLAMA, *installed_module._OF_TRANSFORMERS):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("served")
    checkpoint, other = save_uneven(folder / "pruned", "llama"), save_tiny(folder / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).write_bytes((other / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands_module, "llama_server", lambda: None)
        with (
            served(EXPORT, threads=1, context=512) as llama,
            served(checkpoint, kind="transformers", threads=1, device="cpu") as transformers,
        ):
            yield Both(llama, transformers, checkpoint)


def endpoint(server: Server) -> Endpoint:
    return Endpoint(server.url, server.model)


def test_load_and_the_highest_within_the_slo(both: Both) -> None:
    config = ServerConfig(
        requests=4,
        blocks=2,
        concurrency=(1, 2),
        tokens=TOKENS,
        natural_tokens=TOKENS,
        prompt=4,
        spread=0,
        warmup=3,
        slo=Slo(e2e=300),
        max_minutes=0.25,
    )
    made = bench_server(endpoint(both.llama), baseline=endpoint(both.transformers), config=config)
    assert made.stopped == "" and [each.model for each in made.served] == ["pruned", "per-layer-f32"]
    # `transformers serve` refuses ignore_eos, llama-cpp-python's server passes over it.
    assert [each.exact for each in made.served] == [False, True]
    assert [each.results[0].load.kind for each in made.loads] == ["closed", "closed", "open", "natural"]
    for result in (each for load in made.loads for each in load.results):
        assert (result.requests, result.failed, result.void) == (4, 0, ()), result
        middle = {name: getattr(result, name)[0].value for name in ("ttft", "e2e")}
        assert 0 < middle["ttft"] <= middle["e2e"] < 2
        assert result.tokens is None or 1 <= result.tokens <= TOKENS
    # `transformers serve` counts tokens, also of the prompt.
    assert made.loads[0].results[0].prompt_tokens and made.loads[0].results[0].tokens
    # One at a time: as many a second as fit.
    first = made.loads[0].results[1]
    assert first.requests_per_second == pytest.approx(4 / first.seconds)
    # At least one load was tried on each; how far the search comes depends on the machine.
    assert made.capacity is not None and len(made.capacity.searches) == 2
    assert all(searches[0].probes[0].requests >= 4 for searches in made.capacity.searches)


def answers(server: Server, prompts: list[str]) -> list[str]:
    """What a server answers, asked by hand."""
    made = []
    for prompt in prompts:
        body = {"model": server.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            made.append(json.load(answer)["choices"][0]["text"])
    return made


@pytest.fixture
def records(both: Both, tmp_path: Path) -> Path:
    """Eight records of each server, whose references are what it answers."""
    prompts = [f"{word} was in the garden" for word in ["Once", "Anna", "He", "She", "They", "It", "We", "Nobody"]]
    rows = [
        {"prompt": prompt, "check": "regex", "pattern": rf"\A{re.escape(text)}\Z", "group": group}
        for group in ("llama", "transformers")
        for prompt, text in zip(prompts, answers(getattr(both, group), prompts), strict=True)
    ]
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_both_answer_and_each_is_right_where_it_is_asked_for_its_own(both: Both, records: Path, tmp_path: Path) -> None:
    found = accept(
        endpoint(both.llama),
        baseline=endpoint(both.transformers),
        records=records,
        out=tmp_path / "out",
        policy=Policy(margin=0.5),
        max_new_tokens=TOKENS,
        batch_size=2,
    )
    everything = found.everything
    assert (everything.failed, everything.baseline_failed, everything.records) == (0, 0, 16)
    assert found.groups["llama"].error_rate.value == found.groups["transformers"].baseline_error_rate.value == 0.0
    # They are two models.
    assert found.groups["llama"].baseline_error_rate.value == found.groups["transformers"].error_rate.value == 1.0
    assert (found.smaller["model"], found.baseline["model"]) == ("per-layer-f32", "pruned")


def test_an_export_is_accepted_behind_its_server(both: Both, records: Path, tmp_path: Path, command: Command) -> None:
    """Layers of their own widths, which PyTorch can't read from a .gguf file."""
    told = ("--baseline", both.llama.url, "--records", records, "-o", tmp_path / "out", "--max-new-tokens", TOKENS)
    made = command("accept", EXPORT, *told, "--server", "auto", "--json")
    # 16 records are too few to show anything, and that is all that speaks against it.
    assert made.code == 3 and made.json["verdict"] == "too few to tell", made.err
    smaller = made.json["smaller"]
    assert smaller["model"] == "per-layer-f32" and smaller["endpoint"].startswith("127.0.0.1:")
    everything = made.json["all"]
    assert everything["error_rate"]["value"] == everything["baseline_error_rate"]["value"] == 0.5
    assert everything["flips"]["value"] == 0 and everything["failed"] == 0


@pytest.mark.parametrize("name", ["llama", "transformers"])
def test_servers_without_log_probabilities_of_prompts_are_told(both: Both, name: str) -> None:
    dense = DenseServer(endpoint(getattr(both, name)))
    begin = time.perf_counter()
    with pytest.raises(PrunekitError, match=r"gives no log-probabilities of prompts: .*vLLM gives them; llama.cpp and"):
        dense.read([Context("a", (1, 2, 3, 4), 2, True)], "dense")
    # Not asked again: it will never know better.
    assert time.perf_counter() - begin < 5
