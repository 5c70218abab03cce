"""Requests to OpenAI-compatible servers: whatever the server does becomes an answer, at the right times."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.utils.endpoints.about import CacheCounters, cache_counters, check_two, read_samples, with_model
from prunekit.utils.endpoints.answer import Answer, Limits
from prunekit.utils.endpoints.client import complete, opened, stream
from prunekit.utils.endpoints.endpoint import Ask, Endpoint
from prunekit.utils.endpoints.naming import is_model_asked
from prunekit.utils.endpoints.sse import EventParser
from tests.support.scripted_server import Script, answer, chunk, event, free_port, scripted, usage

WIDE, SHORT = Limits(), Limits(connect=2, first=0.4, gap=0.3, total=2.0)


def ask(script: Script, limits: Limits = WIDE, *, chat: bool = False) -> Answer:
    async def run(url: str) -> Answer:
        endpoint = Endpoint(url, "scripted", api="chat" if chat else "completions")
        async with opened(endpoint) as client:
            return await stream(client, endpoint, Ask("hello", max_tokens=4, id="a"), limits)

    with scripted(lambda *_: script) as server:
        return asyncio.run(run(server.url))


@given(st.lists(st.text(max_size=20).map(lambda text: text.replace("\r", "")), max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_events_are_the_same_however_they_are_cut(texts: list[str], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    wanted = ["\n".join(text.split("\n")) for text in texts]
    stream = ": comment" + end + end
    for text in texts:
        stream += "event: x" + end + "".join(f"data: {line}{end}" for line in text.split("\n")) + end
    raw = stream.encode("utf-8", "replace")
    wanted = [each.encode("utf-8", "replace").decode() for each in wanted]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    parser, got = EventParser(), []
    for begin, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        got += parser.feed(raw[begin:stop])
    assert got + parser.close() == wanted


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_parsed_alike_in_one_piece_and_in_two(raw: bytes, cut: int) -> None:
    whole, cut_in_two = EventParser(), EventParser()
    at_once = whole.feed(raw) + whole.close()
    assert cut_in_two.feed(raw[:cut]) + cut_in_two.feed(raw[cut:]) + cut_in_two.close() == at_once


def test_an_event_without_end_is_refused() -> None:
    parser = EventParser()
    with pytest.raises(ValueError, match="more than 4 MiB"):
        for _ in range(100):
            parser.feed(b"data: " + b"x" * 100_000)


def test_times_are_those_of_the_server() -> None:
    """Within 5 ms of when the server, which is in this process, did write. A busy machine may take a few tries."""

    async def run(url: str) -> Answer:
        endpoint = Endpoint(url, "scripted")
        async with opened(endpoint) as client:
            return await stream(client, endpoint, Ask("hello", max_tokens=9, id="a"))

    with scripted(lambda *_: answer(9, ttft=0.05, tpot=0.02, a_chunk=4)) as server:
        for _ in range(20):
            made = asyncio.run(run(server.url))
            assert made.ok and made.tokens == 9 and made.finish_reason == "length"
            assert len(made.chunks) == 3 and made.text == " w" * 9
            assert made.first is not None and made.ttft is not None and made.tpot is not None
            assert made.ttft >= 0.05 and made.e2e >= 0.05 + 8 * 0.02
            assert made.tpot == pytest.approx((made.e2e - made.ttft) / 8)
            wrote = server.wrote[-1][1]
            if made.first - wrote[0] < 0.005 and made.ended - wrote[2] < 0.005:
                return
    pytest.fail(f"never within 5 ms: {made} against {wrote}")


def test_a_character_split_between_packets_comes_whole() -> None:
    raw = chunk(" né") + chunk("e 🙂", "stop")
    pieces = tuple((0.01, raw[each : each + 1]) for each in range(len(raw)))
    # One byte a packet takes a while; nothing is to be lost.
    made = ask(Script(tuple((0.0, data) for _, data in pieces)))
    assert made.ok and made.text == " née 🙂"


def test_comments_empty_choices_and_a_missing_end() -> None:
    made = ask(Script(((0, b": ping\n\n"), (0, chunk("a")), (0, chunk("", "stop")), (0, usage(3, 1)))))
    assert made.ok and made.text == "a" and made.usage is not None and made.usage.completion == 1
    assert ask(Script(((0, chunk("a", "stop")),))).usage is None
    details = usage(3, 1, prompt_tokens_details={"cached_tokens": 2})
    cached = ask(Script(((0, chunk("a", "stop")), (0, details)))).usage
    assert cached is not None and cached.cached == 2


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(((0, b'{"error": {"message": "slow down"}}'),), status=429), "status 429"),
        (Script(((0, b"<html>"),), status=500), "status 500"),
        (Script(status=302, headers=(("location", "http://192.0.2.1/"),)), "status 302"),
        (Script(((0, chunk("a")),), stall=5), "stalled"),
        (Script(((0, b": ping\n\n"), *[(0.1, b": ping\n\n")] * 20)), "stalled"),
        (Script(((0, chunk("a")), *[(0.1, chunk("a"))] * 40)), "too long"),
        (Script(((0, chunk("a")),), reset=True), "reset"),
        (Script(((0, b"data: {nonsense\n\n"),)), "malformed"),
        (Script(((0, event([1])),)), "malformed"),
        (Script(((0, event({"choices": [3]})),)), "malformed"),
        (Script(((0, event({"choices": "x"})),)), "malformed"),
        (Script(((0, b'{"choices": [{"text": "a"}]}'),)), "malformed"),
        (Script(), "malformed"),
        (Script(((0, chunk("a")),)), "cut off"),
        (Script(((0, event({"error": {"message": "out of memory"}})),)), "server error"),
        (Script(((0, event("[" * 100_000)),)), "malformed"),
    ],
)
def test_what_a_server_does_wrong_has_a_name(script: Script, kind: str) -> None:
    begin = time.perf_counter()
    made = ask(script, SHORT)
    assert made.error == kind, made
    assert made.tpot is None and time.perf_counter() - begin < 6


def test_answers_are_bounded_in_size() -> None:
    made = ask(Script(tuple((0.0, chunk("x" * 1000)) for _ in range(50))), Limits(most_bytes=10_000))
    assert made.error == "too large"


def test_nobody_listens() -> None:
    async def run() -> Answer:
        endpoint = Endpoint(f"http://127.0.0.1:{free_port()}")
        async with opened(endpoint) as client:
            with pytest.raises(PrunekitError, match="does not answer"):
                await with_model(client, endpoint)
            return await stream(client, endpoint, Ask("a"), SHORT)

    assert asyncio.run(run()).error == "refused"


def test_a_name_that_no_host_can_have_is_told() -> None:
    async def run() -> Answer:
        endpoint = Endpoint(f"http://{'a' * 64}.example")
        async with opened(endpoint) as client:
            with pytest.raises(PrunekitError, match="does not answer"):
                await with_model(client, endpoint)
            return await stream(client, endpoint, Ask("a"), SHORT)

    assert asyncio.run(run()).error == "unreachable"


def test_a_busy_server_is_asked_again() -> None:
    whole = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "model": "scripted@main"}
    whole["usage"] = {"prompt_tokens": 2, "completion_tokens": 1}

    def script(body: dict[str, Any], number: int) -> Script:
        if number < 2:
            return Script(status=429 if number else 503, headers=(("retry-after", "0"),))
        return Script(((0, json.dumps(whole).encode()),), length=True)

    async def run(url: str, retries: int) -> Answer:
        endpoint = Endpoint(url, "scripted")
        async with opened(endpoint) as client:
            messages = ({"role": "user", "content": "well?"},)
            return await complete(client, endpoint, Ask(messages=messages), retries=retries)

    with scripted(script) as server:
        made = asyncio.run(run(server.url, 4))
        assert made.ok and made.text == "yes" and made.tries == 3 and made.tokens == 1
        assert server.seen[0]["messages"] == [{"role": "user", "content": "well?"}]
    with scripted(script) as server:
        assert asyncio.run(run(server.url, 1)).error == "status 429"


def test_key_and_request_id_are_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "s3cret")

    async def run(url: str) -> Answer:
        endpoint = Endpoint(url + "/v1/", "scripted", api_key_env="A_KEY", headers=(("x-team", "a"),))
        assert "s3cret" not in repr(endpoint)
        async with opened(endpoint) as client:
            return await stream(client, endpoint, Ask("p", id="r-1", exact=True, max_tokens=7))

    with scripted(lambda *_: answer(1, ttft=0, tpot=0)) as server:
        assert asyncio.run(run(server.url)).ok
        sent = {name.lower(): value for name, value in server.headers[0].items()}
        assert sent["authorization"] == "Bearer s3cret"
        assert uuid.UUID(sent["x-request-id"]) and sent["x-team"] == "a"
        body = server.seen[0]
        assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
        assert body["temperature"] == 0 and body["ignore_eos"] is True and body["min_tokens"] == 7


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://u:p@a", "http://a/?q", "http://a:x"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(PrunekitError):
        Endpoint(url)


def test_a_variable_that_is_not_set() -> None:
    with pytest.raises(PrunekitError, match="NO_SUCH_KEY is not set"):
        Endpoint("http://127.0.0.1:1", api_key_env="NO_SUCH_KEY")


def test_counters_of_prefix_caches() -> None:
    page = (
        "# HELP vllm:prefix_cache_queries_total x\n"
        'vllm:prefix_cache_queries_total{engine="0",model_name="a b"} 100.0\n'
        'vllm:prefix_cache_queries_total{engine="1",model_name="a b"} 50.0\n'
        'vllm:prefix_cache_hits_total{engine="0"} 3\nodd line\nbad NaN\nvllm:x{a="} 1"} nope\n'
    )
    assert read_samples(page)["vllm:prefix_cache_queries_total"] == 150

    async def run(url: str) -> CacheCounters:
        endpoint = Endpoint(url)
        async with opened(endpoint) as client:
            assert (await with_model(client, endpoint)).model == "scripted"
            return await cache_counters(client, endpoint)

    with scripted(lambda *_: Script(), pages={"/metrics": page}) as server:
        assert asyncio.run(run(server.url)) == CacheCounters(150, 3)
    with scripted(lambda *_: Script()) as server:
        assert asyncio.run(run(server.url)) == CacheCounters()


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("assistant", "assistant", True),
        # transformers serve, Ollama and OpenAI add a version.
        ("pruned-1", "pruned-1@main", True),
        ("llama3", "llama3:latest", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("m" * 300, "m" * 200, True),
        ("assistant", "dense", False),
        ("pruned", "pruned-1", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("pruned@a", "pruned@b", False),
        ("pruned-1@main", "pruned-1", False),
    ],
)
def test_names_of_one_model(asked: str, answered: str, same: bool) -> None:
    assert is_model_asked(asked, answered) is same


@pytest.mark.parametrize(
    ("script", "error", "detail"),
    [
        (Script(answer(2, ttft=0, tpot=0).pieces), None, ""),
        (
            Script(
                tuple((wait, data.replace(b"scripted", b"/m/dense")) for wait, data in answer(2, ttft=0, tpot=0).pieces)
            ),
            "another model answered",
            "dense in place of scripted",
        ),
        # As LiteLLM's proxy says it, where both servers call their model by one name.
        (
            Script(answer(2, ttft=0, tpot=0).pieces, headers=(("x-litellm-attempted-fallbacks", "1"),)),
            "another model answered",
            "scripted in place of scripted",
        ),
        (Script(answer(2, ttft=0, tpot=0).pieces, headers=(("x-litellm-attempted-fallbacks", "0"),)), None, ""),
        (Script(((0, event({"choices": [{"text": "w", "finish_reason": "stop"}]})),)), None, ""),
    ],
)
def test_an_answer_of_another_model_is_none(script: Script, error: str | None, detail: str) -> None:
    made = ask(script)
    assert (made.error, made.detail) == (error, detail)


def test_addresses_of_one_server() -> None:
    places = {Endpoint(url).place for url in ("http://127.0.0.1:80", "http://LOCALHOST/v1", "http://[::1]/v1/")}
    assert len(places) == 1
    others = ("https://127.0.0.1:80", "http://127.0.0.1:81", "http://127.0.0.1/other", "http://example.com")
    assert len(places | {Endpoint(url).place for url in others}) == 5
    with pytest.raises(PrunekitError, match=r"are both 'a' of http://localhost:1; give two addresses, or name two"):
        check_two(Endpoint("http://localhost:1", "a"), Endpoint("http://127.0.0.1:1/v1", "a"))
    check_two(Endpoint("http://localhost:1", "a"), Endpoint("http://127.0.0.1:1/v1", "b"))
