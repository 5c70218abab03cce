"""Alarms to a URL, in the shape of Prometheus' Alertmanager (webhook version 4), so that its receivers work."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable

_SECONDS = 10.0
_NEVER = "0001-01-01T00:00:00Z"
_SEVERITIES = {"re-prune": "warning", "investigate": "warning", "fall back to dense now": "critical"}


def check_url(url: str) -> None:
    """Raises PrunekitError unless ``url`` is one of http or https with a host."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise PrunekitError("--webhook is no URL of http or https, such as https://alerts.example/hook; check it.")


def body(alarm: dict[str, Any], model: str) -> dict[str, Any]:
    """What is posted of an alarm (:meth:`~prunekit.monitoring.alarms.alarm.Alarm.to_dict`)."""
    labels = {
        "alertname": "PrunekitWatch",
        "severity": _SEVERITIES.get(alarm["verdict"], "info"),
        "verdict": alarm["verdict"],
        "model": model,
    }
    annotations = {
        "summary": f"prunekit watch: {alarm['verdict']}",
        "description": printable(" ".join(alarm["reasons"])),
        "action": alarm["do"],
        "alarm_id": alarm["id"],
    }
    alert = {
        "status": alarm["status"],
        "labels": labels,
        "annotations": annotations,
        "startsAt": alarm["began"],
        "endsAt": alarm["ended"] or _NEVER,
        "generatorURL": "",
        "fingerprint": hashlib.sha256(alarm["id"].encode()).hexdigest()[:16],
    }
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="PrunekitWatch", alarm_id="{alarm["id"]}"}}',
        "truncatedAlerts": 0,
        "status": alarm["status"],
        "receiver": "prunekit",
        "groupLabels": {"alertname": "PrunekitWatch"},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }


def post(url: str, data: dict[str, Any]) -> str | None:
    """Post ``data`` as JSON. Returns why that failed, without the URL (which may hold a secret), else None."""
    import httpx

    try:
        # Of the answer nothing is wanted but its status.
        with (
            httpx.Client(timeout=_SECONDS, follow_redirects=False) as client,
            client.stream("POST", url, json=data) as answer,
        ):
            code = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return f"no answer ({type(error).__name__})"
    return None if 200 <= code < 300 else f"answer {code}"
