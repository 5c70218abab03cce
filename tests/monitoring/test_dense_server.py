"""A dense model behind a server: log-probabilities of prompts, one request at a time, and errors that help."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.scoring import endpoint as endpoints
from prunekit.monitoring.scoring.contexts import Context, ScoringConfig
from prunekit.monitoring.scoring.endpoint import DenseServer, likeliest
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.utils.endpoints.endpoint import Endpoint
from tests.support.command import save_tiny
from tests.support.scripted_server import Script, Scripted, scripted
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("single_threaded")

CONFIG = ScoringConfig(prompts=8, least=4, prompt_tokens=24, answer_tokens=12, reference=16)
REQUESTS = [Request(f"r{number}", prompt="abcdefgh"[number:], answer="xyz") for number in range(5)]


def told(model: Any, ids: list[int], k: int) -> list[dict[str, Any] | None]:
    """What vLLM answers with ``prompt_logprobs: k``."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    rows: list[dict[str, Any] | None] = [None]
    for place, token in enumerate(ids[1:]):
        kept = {*log_probs[place].topk(k).indices.tolist(), token}
        rows.append({str(each): {"logprob": float(log_probs[place, each]), "decoded_token": "?"} for each in kept})
    return rows


def reply(said: Any) -> Script:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    return Script(((0.0, data),), headers=(("content-type", "application/json"),), length=True)


@contextmanager
def served(script: Callable[[dict[str, Any], int], Script]) -> Iterator[tuple[DenseServer, Scripted]]:
    with scripted(script) as server:
        yield DenseServer(Endpoint(server.url), top=5), server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("server")
    save_tiny(root / "deployed", layers=2)
    save_tiny(root / "dense", layers=2, seed=1)
    return root


def test_a_server_s_scores_are_near_those_of_the_checkpoint_and_never_above(folder: Path) -> None:
    dense = tiny_model("llama", layers=2, seed=1)
    deployed = resolve(str(folder / "deployed"))

    def script(body: dict[str, Any], number: int) -> Script:
        assert (body["max_tokens"], body["prompt_logprobs"], body["model"]) == (1, 5, "scripted")
        return reply({"choices": [{"text": "x", "prompt_logprobs": told(dense, body["prompt"], 5)}]})

    with served(script) as (server, seen):
        made, _ = Scorer(deployed, server, CONFIG, device="cpu").scores(REQUESTS, REQUESTS[:3])
    exact, _ = Scorer(deployed, resolve(str(folder / "dense")), CONFIG, device="cpu").scores(REQUESTS, REQUESTS[:3])
    assert (len(seen.seen), seen.busiest) == (3, 1)
    for one, other in zip(made[:3], exact[:3], strict=True):
        assert one.shadow is not None and other.shadow is not None
        assert one.shadow.bound and not other.shadow.bound
        assert 0 < one.shadow.kl < other.shadow.kl
        assert one.shadow.agreement == other.shadow.agreement
        assert one.shadow.answer_increase == pytest.approx(other.shadow.answer_increase, rel=1e-4)
    assert made[3].shadow is None


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_wait", lambda tries: 0.0)
    ids = [5, 6, 7]
    rows = [None, {"6": {"logprob": -1.0}}, {"7": {"logprob": -0.5}, "8": {"logprob": -0.25}}]

    def script(body: dict[str, Any], number: int) -> Script:
        busy = number in (0, 2)
        return Script(((0.0, b"busy"),), status=503) if busy else reply({"choices": [{"prompt_logprobs": rows}]})

    with served(script) as (server, seen):
        said = server.read([Context("a", tuple(ids), 2, True), Context("b", tuple(ids), 2, True)], "dense")
    assert len(seen.seen) == 4
    assert said["a"].own.tolist() == [-1.0, -0.5]
    assert said["a"].first.tolist() == [6, 8]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Script(((0.0, b'{"error": "unknown field"}'),), status=400), "status 400"),
        (reply({"choices": [{"text": "x"}]}), "holds no prompt_logprobs"),
        (reply({"choices": [{"text": "x", "prompt_logprobs": [None]}]}), "holds no prompt_logprobs"),
        (reply({"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1}}]}]}), "read 2 tokens where"),
        (reply({"choices": [{"prompt_logprobs": [None, {"9": {"logprob": -1}}, {}]}]}), "can't be read"),
        (reply({"choices": [{"prompt_logprobs": [None, {"6": {"logprob": 3}}, {}]}]}), "can't be read"),
        (reply({"choices": [{"prompt_logprobs": [None, {"6": {"logprob": "NaN"}}, {}]}]}), "can't be read"),
        (reply({"choices": []}), "holds no prompt_logprobs"),
        (reply([]), "holds no prompt_logprobs"),
        (reply(b"<html>"), "no JSON"),
    ],
)
def test_servers_without_log_probabilities_of_prompts_are_told_apart(script: Script, says: str) -> None:
    with served(lambda body, number: script) as (server, _), pytest.raises(PrunekitError) as caught:
        server.read([Context("a", (5, 6, 7), 2, True)], "dense")
    assert says in str(caught.value)
    assert "llama.cpp and transformers serve do not" in str(caught.value)


def test_a_server_that_fails_again_and_again_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_wait", lambda tries: 0.0)
    broken = Script(((0.0, b"out of memory"),), status=500)
    with served(lambda body, number: broken) as (server, seen), pytest.raises(PrunekitError, match="out of memory"):
        server.read([Context("a", (5, 6, 7), 2, True)], "dense")
    assert len(seen.seen) == 4


def test_long_prompts_are_not_sent() -> None:
    never = reply({})
    with served(lambda body, number: never) as (server, seen), pytest.raises(PrunekitError, match="at most 1,024"):
        server.read([Context("a", tuple(range(3, 1030)), 900, True)], "dense")
    assert not seen.seen


@pytest.mark.parametrize("wrong", [1 << 31, 1 << 80, -1])
def test_tokens_that_can_t_be_are_refused(wrong: int) -> None:
    told = [None, {"5": {"logprob": -1.0}, str(wrong): {"logprob": -2.0}}]
    with pytest.raises(PrunekitError, match="can't be read"):
        likeliest({"choices": [{"prompt_logprobs": told}]}, [4, 5])


def test_minus_infinity_of_a_server_is_a_number() -> None:
    made = likeliest(
        {"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -9999.0}, "7": {"logprob": 0.0}}]}]}, [5, 6]
    )
    assert made.own.tolist() == [-9999.0]
    assert made.first.tolist() == [7]
