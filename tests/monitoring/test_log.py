"""Request logs: names and aliases, OTLP-JSON, and every kind of bad line counted instead of a crash."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.monitoring.log.lines import LONGEST, lines
from prunekit.monitoring.log.otel import flat_rows
from prunekit.monitoring.log.problems import Problems
from prunekit.monitoring.log.read import Place, Seen, read_from, read_log
from prunekit.monitoring.log.request import Request, sample


def test_of_several_models_one_is_read(tmp_path: Path) -> None:
    rows = [
        {"id": f"{at}", "n_in": 3, **({"model": name} if name else {})} for at, name in enumerate(["a", "b", None, "b"])
    ]
    (tmp_path / "log").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = Problems()
    found = [each.id for each, _ in read_from(tmp_path / "log", Place(), problems, Seen(), only="a")]
    assert found == ["0", "2"] and problems.requests == 2 and problems.empty == 0
    assert problems.sentences() == [
        "2 lines of another model than the one that is watched; left out (first: log:2, log:4)."
    ]


def read(path: Path, *rows: Any) -> tuple[list[Request], Problems]:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    problems = Problems()
    return list(read_log([path], problems)), problems


def test_own_names(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "ts": "2026-01-02T03:04:05.5Z",
        "prompt": "Hello",
        "prompt_ids": [5, 6],
        "answer": "Hi",
        "answer_ids": [7],
        "finish_reason": "stop",
        "ttft_ms": 12,
        "latency_ms": 30.5,
        "logprob_mean": -0.5,
        "outcome": "Edited",
        "edit_distance": 0.25,
        "critical": True,
    }
    (request,), problems = read(tmp_path / "log", row)
    assert request == Request(
        "a",
        1767323045.5,
        prompt="Hello",
        prompt_ids=(5, 6),
        answer="Hi",
        answer_ids=(7,),
        n_in=2,
        n_out=1,
        finish_reason="stop",
        ttft_ms=12,
        latency_ms=30.5,
        logprob_mean=-0.5,
        outcome="edited",
        edit_distance=0.25,
        critical=True,
    )
    assert not problems.counts and problems.requests == 1


def test_a_chat_is_its_texts(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    (request,), _ = read(tmp_path / "log", {"messages": chat, "usage": {"prompt_tokens": 9, "completion_tokens": 4}})
    assert request.prompt == "Be short.\nHi" and request.messages == (("system", "Be short."), ("user", "Hi"))
    assert (request.n_in, request.n_out) == (9, 4) and request.id.startswith("line-")


def test_names_of_opentelemetry(tmp_path: Path) -> None:
    flat = {
        "gen_ai.response.id": "r1",
        "gen_ai.response.model": "small",
        "gen_ai.request.model": "asked",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.client.operation.duration": 1.5,
        "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "Why?"}]}],
        "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "Because."}]}],
    }
    (request,), problems = read(tmp_path / "log", flat)
    assert (request.id, request.model, request.n_in, request.n_out) == ("r1", "small", 7, 3)
    assert (request.finish_reason, request.latency_ms) == ("length", 1500)
    assert (request.prompt, request.answer) == ("Why?", "Because.") and not problems.counts


def test_batches_of_otlp_json(tmp_path: Path) -> None:
    def attribute(key: str, **value: Any) -> dict[str, Any]:
        return {"key": key, "value": value}

    spans = [
        {
            "spanId": "s1",
            "startTimeUnixNano": "1760000000000000000",
            "endTimeUnixNano": "1760000000500000000",
            "attributes": [attribute("gen_ai.usage.input_tokens", intValue="7")],
        },
        {"spanId": "s2", "attributes": [attribute("http.method", stringValue="GET")]},
        {
            "spanId": "s3",
            "status": {"code": 2},
            "attributes": [attribute("gen_ai.request.model", stringValue="m")],
        },
    ]
    record = {
        "timeUnixNano": "1760000001000000000",
        "attributes": [
            attribute("gen_ai.usage.output_tokens", intValue=4),
            attribute("gen_ai.response.finish_reasons", arrayValue={"values": [{"stringValue": "stop"}]}),
        ],
    }
    found, problems = read(
        tmp_path / "log",
        {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]},
        {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]},
    )
    assert [(each.n_in, each.n_out, each.latency_ms, each.finish_reason) for each in found] == [
        (7, None, 500, None),
        (None, None, None, "error"),
        (None, 4, None, "stop"),
    ]
    assert found[0].ts == 1760000000 and found[1].failed and not problems.counts


def test_every_bad_line_is_counted(tmp_path: Path) -> None:
    found, problems = read(
        tmp_path / "log",
        {"id": "a", "ts": 1760000000, "n_in": 3},
        b"{broken",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        {"unknown": 1},
        b'{"id": "b", "n_in": NaN, "n_out": 1e999, "finish_reason": "stop"}',
        {"id": "c", "n_in": "three", "n_out": True, "prompt_ids": [1.5], "answer": 5, "finish_reason": "stop"},
        {"id": "d", "n_in": -1, "ts": 5, "outcome": "loved", "finish_reason": "stop"},
        {"id": "a", "n_in": 3},
        {"id": "e", "ts": 1750000000, "n_in": 3},
        {"id": "f", "ts": 1760000000, "n_in": 3},
        {"id": "a", "outcome": "rejected"},
        {"id": "a", "outcome": "rejected"},
    )
    assert [each.id for each in found] == ["a", "b", "c", "d", "e", "f", "a"]
    assert problems.counts == {
        "broken": 4,
        "not a request": 1,
        "not finite": 2,
        "wrong type": 4,
        "out of range": 3,
        "duplicate": 2,
        "clock back": 1,
        "clock ahead": 1,
    }
    assert problems.requests == 6 and found[-1].is_label
    assert "4 lines no JSON object; left out (first: log:2, log:3, log:4)." in problems.sentences()


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    long = b'{"n_in": 1, "prompt": "' + b"x" * LONGEST + b'"}'
    found, problems = read(tmp_path / "log", {"n_in": 1}, long, {"n_in": 2})
    assert [each.n_in for each in found] == [1, 2] and problems.counts == {"too long": 1}


def test_packed_logs_and_those_that_end_early(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    packed = gzip.compress(b"".join(json.dumps({"n_in": index}).encode() + b"\n" for index in range(5000)))
    path.write_bytes(packed)
    assert len(list(read_log([path], Problems()))) == 5000
    path.write_bytes(packed[:-200])
    problems = Problems()
    assert len(list(read_log([path], problems))) < 5000 and problems.counts["cut short"] == 1


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), (".", "is a folder")])
def test_what_is_no_file(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(PrunekitError, match=words):
        list(read_log([tmp_path / name], Problems()))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 200))
def test_lines_from_any_place_are_the_files(tmp_path_factory: pytest.TempPathFactory, parts: Any, start: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "log"
    whole = b"\n".join(part.replace(b"\x1f\x8b", b"") for part in parts)
    path.write_bytes(whole)
    found = list(lines(path, min(start, len(whole))))
    assert b"".join((each.data or b"") + b"\n" * each.whole for each in found) == whole[min(start, len(whole)) :]
    assert all(whole[each.begin : each.end].rstrip(b"\n") == (each.data or b"").rstrip(b"\n") for each in found)


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_keys = st.sampled_from(
    [*Request.__dataclass_fields__, "usage", "attributes", "error", "resourceSpans", "gen_ai.output.messages"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_keys, _anything, max_size=6))
def test_no_row_is_a_crash(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("rows") / "log"
    found, problems = read(path, row)
    assert len(found) + problems.counts["broken"] + problems.counts["not a request"] <= 1 or "resourceSpans" in row


def test_reading_goes_on_inside_a_batch(tmp_path: Path) -> None:
    spans = [{"attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": n}}]} for n in range(4)]
    path = tmp_path / "log"
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}) + '\n{"n_in": 9}\n{"n_in": 10')
    whole = list(read_from(path, Place(), Problems(), Seen(), growing=True))
    assert [each.n_in for each, _ in whole] == [0, 1, 2, 3, 9]
    for at, (_, place) in enumerate(whole):
        rest = read_from(path, place, Problems(), Seen(), growing=True)
        assert [each.n_in for each, _ in rest] == [0, 1, 2, 3, 9][at + 1 :]


def test_a_sample_depends_on_ids_alone() -> None:
    requests = [Request(str(index)) for index in range(100)]
    assert sample(requests, 20) == sample(reversed(requests), 20) == sample(requests, 60)[:20]


def test_an_outcome_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    requests, problems = read(
        tmp_path / "log", {"id": "a", "n_in": 5, "outcome": "rejected"}, {"id": "a", "outcome": "rejected"}
    )
    assert [each.outcome for each in requests] == ["rejected"] and problems.counts == {"duplicate": 1}


@pytest.mark.parametrize("empty", ["", None, False, 0, {}])
def test_an_empty_error_hides_no_status(tmp_path: Path, empty: Any) -> None:
    (failed, fine), _ = read(
        tmp_path / "log", {"n_in": 5, "error": empty, "status_code": 503}, {"n_in": 6, "error": empty, "status": 200}
    )
    assert failed.failed and failed.finish_reason == "error"
    assert fine.finish_reason is None and fine.answered


def test_lines_of_a_gateway(tmp_path: Path) -> None:
    """As nginx writes them: times in seconds, and a status of each request."""
    lines = [
        b'{"ts":"2026-01-02T03:04:05+00:00","id":"a","status":200,"latency_s":1.250,"answered_by":"127.0.0.1:8001"}',
        b'{"ts":"2026-01-02T03:04:06+00:00","id":"b","status":502,"latency_s":0.004,"answered_by":"-"}',
        b'{"ts":"2026-01-02T03:04:07+00:00","id":"c","status":304}',
    ]
    (good, bad, bare), problems = read(tmp_path / "log", *lines)
    assert problems.requests == 3 and not problems.counts and not problems.empty
    assert good == Request("a", 1767323045.0, latency_ms=1250.0, answered=True) and not good.failed
    assert bad == Request("b", 1767323046.0, latency_ms=4.0, finish_reason="error") and bad.failed
    assert bare == Request("c", 1767323047.0, answered=True)


@pytest.mark.parametrize(
    ("status", "failed"),
    [(200, False), ("200", False), (399, False), (400, True), ("503", True), (599, True)]
    + [(each, None) for each in (0, 101, 600, True, "ok", "", "2000", 200.0, None, [200], {"code": 200}, 10**30)],
)
def test_a_status_says_whether_a_request_failed(tmp_path: Path, status: Any, failed: bool | None) -> None:
    requests, _ = read(tmp_path / "log", {"id": "a", "status": status})
    assert [each.failed for each in requests] == ([] if failed is None else [failed])
    # It does not say how the answer ended, and the log's own word goes before it.
    (cut,), _ = read(tmp_path / "log", {"id": "a", "status": 200, "finish_reason": "length"})
    assert cut.finish_reason == "length" and not cut.failed
    # An outcome that comes later stays one.
    (label,), _ = read(tmp_path / "log", {"id": "a", "status": 200, "outcome": "rejected"})
    assert label.is_label


def test_of_two_times_the_preferred_one_is_taken(tmp_path: Path) -> None:
    (request,), _ = read(tmp_path / "log", {"id": "a", "latency_s": 9, "latency_ms": 30})
    assert request.latency_ms == 30
    _, problems = read(tmp_path / "log", {"id": "a", "latency_s": "1.5"}, {"id": "b", "latency_s": -1})
    assert problems.counts == {"wrong type": 1, "out of range": 1, "not a request": 2}


def test_only_operations_that_ask_for_text_are_requests() -> None:
    def batch(name: str | None) -> dict[str, Any]:
        told = [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "5"}}]
        told += [] if name is None else [{"key": "gen_ai.operation.name", "value": {"stringValue": name}}]
        return {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": told}]}]}]}

    for name in (None, "chat", "text_completion", "generate_content"):
        assert len(list(flat_rows(batch(name)))) == 1
    for name in ("embeddings", "execute_tool", "invoke_agent", "create_agent"):
        assert not list(flat_rows(batch(name)))
