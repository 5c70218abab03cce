"""The request log that `prunekit watch` reads, written by LiteLLM's proxy: one JSON object a line for each answer.

Lies beside litellm.yaml, which names it (`callbacks: request_log.writer`). REQUEST_LOG is the file (default:
requests.jsonl). REQUEST_MODEL is the model whose requests are logged (default: smaller, which is `openai/smaller` in
litellm.yaml): answers of the dense model, as fallback or mirror, are no part of it. The log holds what people ask: only
its owner may read it. It is opened anew for each line, so that it can be moved aside at any time.
"""

from __future__ import annotations

import json
import os
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

FILE = os.environ.get("REQUEST_LOG", "requests.jsonl")
MODEL = os.environ.get("REQUEST_MODEL", "smaller")
KINDS = ("completion", "acompletion", "text_completion", "atext_completion")


def line_of(said: dict[str, Any]) -> dict[str, Any] | None:
    """The line for what LiteLLM says of a request (its StandardLoggingPayload); None where it is not of MODEL."""
    if str(said.get("model")).rpartition("/")[2] != MODEL or said.get("call_type") not in KINDS:
        return None
    begin, first, end = (said.get(name) or 0.0 for name in ("startTime", "completionStartTime", "endTime"))
    line: dict[str, Any] = {"id": said.get("id"), "ts": begin, "model": MODEL, "latency_ms": 1000 * (end - begin)}
    asked = said.get("messages")
    line |= {"prompt": asked} if isinstance(asked, str) else {"messages": asked}
    if said.get("status") != "success":
        return line | {"finish_reason": "error"}
    line |= {"n_in": said.get("prompt_tokens"), "n_out": said.get("completion_tokens")}
    if said.get("stream") and begin <= first <= end:
        line["ttft_ms"] = 1000 * (first - begin)
    response = said.get("response")
    choice = ((response.get("choices") if isinstance(response, dict) else None) or [{}])[0]
    text = choice.get("text") if "text" in choice else (choice.get("message") or {}).get("content")
    return line | {"answer": text or "", "finish_reason": choice.get("finish_reason") or "stop"}


class RequestLog(CustomLogger):
    """Adds a line for each answer and each failure."""

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Called by LiteLLM after an answer, and after the last chunk of a stream."""
        self._add(kwargs)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Called by LiteLLM where a server did not answer."""
        self._add(kwargs)

    def _add(self, kwargs: Any) -> None:
        line = line_of(kwargs.get("standard_logging_object") or {})
        if line is None:
            return
        data = json.dumps(line, ensure_ascii=False, default=str) + "\n"
        # One write a line: several workers may write to one file.
        handle = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, data.encode("utf-8", "replace"))
        finally:
            os.close(handle)


writer = RequestLog()
