"""OTLP-JSON, as OpenTelemetry's collector writes it to files: the spans and log records of a line as flat rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Deeper values are no attributes of a request.
_DEEPEST = 16
# What asks a model for text; embeddings, tools and agents are other operations.
_OPERATIONS = (None, "chat", "text_completion", "generate_content")
_SCOPES = (
    ("resourceLogs", "scopeLogs", "logRecords"),
    ("resourceSpans", "scopeSpans", "spans"),
    ("resource_logs", "scope_logs", "log_records"),
    ("resource_spans", "scope_spans", "spans"),
)


def is_otlp(row: dict[str, Any]) -> bool:
    """Whether a line is a batch of OTLP-JSON."""
    return any(outer in row for outer, _, _ in _SCOPES)


def flat_rows(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each span and log record of a batch that has an attribute ``gen_ai.*``, as one flat row of attributes with the
    times and the id of the record. All others, of which traces are full, are passed over."""
    for outer, scope, inner in _SCOPES:
        for resource in _dicts(row.get(outer)):
            for each in _dicts(resource.get(scope)):
                for record in _dicts(each.get(inner)):
                    made = _flat(record)
                    is_request = made.get("gen_ai.operation.name") in _OPERATIONS
                    if is_request and any(key.startswith("gen_ai.") for key in made):
                        yield made


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    made = attributes(record.get("attributes"))
    for event in _dicts(record.get("events")):
        made = {**attributes(event.get("attributes")), **made}
    body = record.get("body")
    if isinstance(body, dict) and isinstance(inner := value_of(body), dict):
        made = {**inner, **made}
    began, ended = (_nanoseconds(record.get(name)) for name in ("startTimeUnixNano", "endTimeUnixNano"))
    at = _nanoseconds(record.get("timeUnixNano")) or _nanoseconds(record.get("observedTimeUnixNano"))
    if began or at:
        made["ts"] = (began or at or 0) / 1e9
    if began and ended and ended >= began:
        made.setdefault("latency_ms", (ended - began) / 1e6)
    span = record.get("spanId")
    if isinstance(span, str) and span:
        made.setdefault("id", span)
    status = record.get("status")
    if isinstance(status, dict) and status.get("code") in (2, "STATUS_CODE_ERROR"):
        made.setdefault("error.type", "error")
    return made


def attributes(value: Any) -> dict[str, Any]:
    """Attributes as a dict: from OTLP's list of ``{key, value}``, or as they are where they are one."""
    if isinstance(value, dict):
        return dict(value)
    return {each["key"]: value_of(each.get("value")) for each in _dicts(value) if isinstance(each.get("key"), str)}


def value_of(value: Any, depth: int = 0) -> Any:
    """The plain value of an OTLP ``AnyValue``."""
    if not isinstance(value, dict) or depth > _DEEPEST:
        return None
    for name in ("stringValue", "boolValue", "doubleValue"):
        if name in value:
            return value[name]
    if "intValue" in value:  # written as a string, since JSON's numbers lose 64-bit integers
        return _nanoseconds(value["intValue"])
    if "arrayValue" in value:
        return [value_of(each, depth + 1) for each in _dicts(_get(value["arrayValue"], "values"))]
    if "kvlistValue" in value:
        return {
            each["key"]: value_of(each.get("value"), depth + 1)
            for each in _dicts(_get(value["kvlistValue"], "values"))
            if isinstance(each.get("key"), str)
        }
    return None


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _nanoseconds(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and len(value) < 24 and value.lstrip("-").isascii() and value.lstrip("-").isdigit():
        return int(value)
    return None
