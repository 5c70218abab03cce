"""The request log that LiteLLM's callback writes, with what LiteLLM 1.108 hands to it, and the watch that reads it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunekit.monitoring.baseline.make import watch_init
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.running.run import watch_run
from tests.support.command import ROOT
from tests.support.request_logs import rows


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The callback as LiteLLM imports it; of LiteLLM only the class that it is made of."""
    logger = ModuleType("litellm.integrations.custom_logger")
    logger.CustomLogger = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "litellm", ModuleType("litellm"))
    monkeypatch.setitem(sys.modules, "litellm.integrations", ModuleType("litellm.integrations"))
    monkeypatch.setitem(sys.modules, logger.__name__, logger)
    monkeypatch.setenv("REQUEST_LOG", str(tmp_path / "requests.jsonl"))
    spec = importlib.util.spec_from_file_location("request_log", ROOT / "examples" / "operate" / "request_log.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.writer


def payload(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What LiteLLM says of the request ``row``."""
    message = {"content": row["answer"], "role": "assistant", "tool_calls": None, "function_call": None}
    choice = {"finish_reason": row["finish_reason"], "index": 0, "message": message}
    end = row["ts"] + row["latency_ms"] / 1000
    made = {
        "id": row["id"],
        "call_type": "acompletion",
        "stream": None,
        "status": "success",
        "model": "openai/smaller",
        "model_group": "assistant",
        "startTime": row["ts"],
        "completionStartTime": end,
        "endTime": end,
        "prompt_tokens": row["n_in"],
        "completion_tokens": row["n_out"],
        "messages": [{"role": "user", "content": row["prompt"]}],
        "response": {"id": row["id"], "model": "assistant", "object": "chat.completion", "choices": [choice]},
        "error_str": None,
    }
    return {**made, **changes}


def write(writer: Any, said: Iterable[dict[str, Any]]) -> None:
    async def all_of() -> None:
        for each in said:
            told = writer.async_log_success_event if each["status"] == "success" else writer.async_log_failure_event
            await told({"standard_logging_object": each}, None, None, None)

    asyncio.run(all_of())


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]


def test_each_line_holds_what_the_watch_reads(writer: Any, tmp_path: Path) -> None:
    (row,) = rows(1)
    failed = payload(row, id="call-1", status="failure", response={}, prompt_tokens=0, completion_tokens=0)
    streamed = payload(row, id="s", stream=True, completionStartTime=row["ts"] + 0.02)
    said = {"choices": [{"text": "\u00e9"}]}
    text = payload(row, id="t", call_type="atext_completion", messages="Once", response=said)
    others = [
        payload(row, model="openai/dense", model_group="dense"),
        payload(row, call_type="aembedding"),
        payload(row, model=None),
    ]
    write(writer, [payload(row), failed, streamed, text, *others])
    whole, error, stream, plain = lines(tmp_path)
    assert whole == {
        "id": row["id"],
        "ts": row["ts"],
        "model": "smaller",
        "latency_ms": pytest.approx(row["latency_ms"], abs=1e-3),
        "messages": [{"role": "user", "content": row["prompt"]}],
        "n_in": row["n_in"],
        "n_out": row["n_out"],
        "answer": row["answer"],
        "finish_reason": row["finish_reason"],
    }
    assert error["finish_reason"] == "error" and error["id"] == "call-1" and not {"n_out", "answer"} & error.keys()
    assert stream["ttft_ms"] == pytest.approx(20, abs=1e-3)
    assert (plain["prompt"], plain["answer"], plain["finish_reason"]) == ("Once", "\u00e9", "stop")
    assert stat.S_IMODE((tmp_path / "requests.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("response", [None, "text", {}, {"choices": []}, {"choices": [{"message": {"content": None}}]}])
def test_an_answer_without_text(writer: Any, tmp_path: Path, response: Any) -> None:
    (row,) = rows(1)
    write(writer, [payload(row, response=response)])
    assert [line["answer"] for line in lines(tmp_path)] == [""]


def test_the_watch_reads_it(writer: Any, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    write(writer, map(payload, rows(4000, 1)))
    base = watch_init(log, tmp_path / "base.json", config=WatchConfig(window=50))
    # All that needs no model and no outcome; nothing has failed in the reference.
    on = {"input_length", "token_mix", "output_length", "cut_answers", "repetition", "latency"}
    assert on <= {each.name for each in base.signals if each.decides} and base.log["windows"] == 80
    # As release.sh moves it aside.
    log.rename(tmp_path / "until-20261130T030000Z-requests.jsonl")
    write(writer, map(payload, rows(600, 2)))
    found = watch_run([log], tmp_path / "base.json", tmp_path / "watch")
    assert (found.verdict, found.alarm) == ("ok", False)
    write(writer, map(payload, rows(600, 3, kind="broken")))
    found = watch_run([log], tmp_path / "base.json", tmp_path / "watch")
    assert (found.verdict, found.alarm) == ("investigate", True)
