"""A dense model behind a server: log-probabilities of prompts, one request at a time, and errors that help."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.running.models import signals_of
from prunekit.monitoring.scoring import endpoint as endpoints
from prunekit.monitoring.scoring.contexts import Context, ScoringConfig
from prunekit.monitoring.scoring.dense import DenseAway
from prunekit.monitoring.scoring.endpoint import DenseServer, likeliest
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.signals import same_dense
from prunekit.utils.endpoints.answer import Limits
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


def test_a_server_that_was_away_is_asked_once_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a backlog of windows would wait for minutes at each of them."""
    monkeypatch.setattr(endpoints, "_wait", lambda tries: 0.0)
    monkeypatch.setattr(endpoints, "_IMPATIENCE", Limits(connect=1, total=0.5))
    good = reply({"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1.0}}]}]})
    scripts = [*[Script(((0.0, b"out of memory"),), status=500)] * 4, Script((), stall=30), good, good]
    asked: list[int] = []

    def script(body: dict[str, Any], number: int) -> Script:
        asked.append(1)
        return scripts[len(asked) - 1]

    context = Context("a", (5, 6), 2, True)
    with served(script) as (server, _):
        for tries, ends in ((4, "out of memory"), (1, r"no answer within 0\.5 s")):
            before, began = len(asked), time.monotonic()
            with pytest.raises(DenseAway, match=ends):
                server.read([context], "dense")
            assert len(asked) - before == tries and time.monotonic() - began < 5
        assert set(server.read([context, replace(context, id="b")], "dense")) == {"a", "b"}
        assert not server.seen.away


def test_the_identity_names_what_is_served() -> None:
    listing = json.dumps({"data": [{"id": "llama-8b"}, {"id": "other"}]})
    with scripted(lambda body, number: reply({}), pages={"/v1/models": listing}) as server:
        assert DenseServer(Endpoint(server.url)).identity == "server:llama-8b:top-20"
        assert DenseServer(Endpoint(server.url, "other")).identity == "server:other:top-20"
        wrong = DenseServer(Endpoint(server.url, "none"))
        with pytest.raises(PrunekitError, match="has no model 'none'; it lists llama-8b, other"):
            wrong.ask_name()
    gone = DenseServer(Endpoint(server.url))
    assert gone.identity == f"{endpoints.UNKNOWN}top-20" and gone.seen.away
    assert same_dense("server:llama-8b:top-20", gone.identity), "a server that is away is no other model"
    assert not same_dense("server:llama-8b:top-20", "server:other:top-20")


def test_options_of_a_server_need_one(folder: Path, tmp_path: Path) -> None:
    for more in ({"dense_served_name": "x"}, {"api_key_env": "KEY"}):
        with pytest.raises(PrunekitError, match="are of a dense model at a server"):
            signals_of(str(folder / "deployed"), str(folder / "dense"), tmp_path / "b.json", window=50, **more)


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
