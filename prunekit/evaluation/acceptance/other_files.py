"""What other commands measured, where a policy asks for it: loss added, load within the SLO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.verdict import Condition
from prunekit.evaluation.verdict import BROKEN
from prunekit.utils.files.strict_json import parse, read_regular
from prunekit.utils.names import printable

_SERVER = "prunekit-server-bench"


def conditions_of(policy: Policy, identity: Mapping[str, Any]) -> tuple[Condition, ...]:
    """What the policy asks of eval.json and serve.json, of the smaller model of this ``identity``
    (:class:`~prunekit.evaluation.acceptance.asked.candidate.Candidate`).

    Raises PrunekitError where a file can't be read, does not hold what is asked, or tells of other weights.
    """
    name, made = str(identity["model"]), []
    if policy.eval is not None:
        path, limit = Path(policy.eval["file"]), float(policy.eval["max_loss_added"])
        value, who = _loss_added(_read(path, "prunekit eval -o"), path, name, identity["fingerprint"])
        adds = "is broken: its outputs are no numbers" if value is None else f"adds {value:.3f} nats a token"
        sentence = f"In {path.name} {who} {adds}; the policy allows {limit:g}."
        holds = value is not None and value <= limit
        made.append(Condition("max_loss_added", None, value, limit, holds, printable(sentence)))
    if policy.serve is not None:
        path, limit = Path(policy.serve["file"]), float(policy.serve["min_load_ratio"])
        data = _read(path, "prunekit bench-server")
        found, doubt = _load_ratio(data, path), _doubt(data)
        _check_served(data, path, name, identity.get("model_sha256"))
        told = "has no ratio to the baseline's" if found is None else f"is {found:.2f} times the baseline's"
        told += _interval(data)
        sentence = f"In {path.name} the highest load within the SLO {told}; the policy asks for {limit:g}.{doubt}"
        holds = found is not None and found >= limit and not doubt
        made.append(Condition("min_load_ratio", None, found, limit, holds, printable(sentence)))
    return tuple(made)


def _read(path: Path, command: str) -> Mapping[str, Any]:
    try:
        data = parse(read_regular(path))
    except FileNotFoundError:
        raise PrunekitError(f"The policy names {path}, which does not exist; write it with `{command}`.") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PrunekitError(f"{path}, which the policy names, can't be read: {why}.") from None
    if not isinstance(data, dict):
        raise PrunekitError(f"{path}, which the policy names, is no JSON object; write it with `{command}`.")
    return data


def _interval(data: Mapping[str, Any]) -> str:
    """That of the ratio of highest loads, where the file tells it."""
    low, high = (data["capacity"]["ratio"].get(end) for end in ("low", "high"))
    known = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (low, high))
    return f" (95 %: {low:.2f} to {high:.2f})" if known else ""


def _loss_added(data: Mapping[str, Any], path: Path, name: str, fingerprint: str | None) -> tuple[float | None, str]:
    """None for a model whose outputs are no numbers."""
    several = data.get("models")
    rows = [each for each in several if isinstance(each, dict)] if isinstance(several, list) else [data]
    if len(rows) > 1:
        rows = [each for each in rows if each.get("model") == name]
    verdict = rows[0].get("verdict") if len(rows) == 1 else None
    value = verdict.get("loss_added") if isinstance(verdict, dict) else None
    broken = isinstance(verdict, dict) and verdict.get("verdict") == BROKEN and value is None
    if broken:
        value = math.nan
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PrunekitError(
            f"{path} holds no loss added by {name}; write it with `prunekit eval` of that model, with --baseline."
        )
    origin = rows[0].get("origin")
    measured = origin.get("fingerprint") if isinstance(origin, dict) else None
    if None not in (measured, fingerprint) and measured != fingerprint:
        raise PrunekitError(
            f"{path} was measured of another model than {name}: their weights differ; write it again with "
            "`prunekit eval` of that model, with --baseline."
        )
    return None if broken else float(value), str(rows[0].get("model", "the model"))[:200]


def _load_ratio(data: Mapping[str, Any], path: Path) -> float | None:
    """None where a model never met the SLO, or never broke it: then there is no ratio."""
    capacity = data.get("capacity")
    ratio = capacity.get("ratio") if isinstance(capacity, dict) else None
    found = ratio.get("value", _SERVER) if isinstance(ratio, dict) else _SERVER
    usable = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    if data.get("format") != _SERVER or not (usable or found is None):
        raise PrunekitError(
            f"{path} holds no highest loads within an SLO; write it with `prunekit bench-server` of both models, with "
            "--slo and --output."
        )
    return None if found is None else float(found)


def _check_served(data: Mapping[str, Any], path: Path, name: str, digest: str | None) -> None:
    """Raises PrunekitError where the load test is of other weights than those with the hash ``digest``; nobody can tell
    where either was behind a server of somebody else's."""
    found: Any = data
    for each in ("served", "endpoint", "identity", "model_sha256"):
        found = found.get(each) if isinstance(found, dict) else None
    if None not in (found, digest) and found != digest:
        raise PrunekitError(
            f"{path} was measured of another model than {name}: the files that were served differ; write it again with "
            "`prunekit bench-server` of that model."
        )


def _doubt(data: Mapping[str, Any]) -> str:
    """Why a load test shows nothing, as a sentence; nothing where it does."""
    stopped = data.get("stopped")
    if stopped:
        why = f": {stopped[:200].rstrip('.')}" if isinstance(stopped, str) else ""
        return f" The load test ended early{why}; it shows nothing."
    if data.get("believed", True) is not True:
        return " The load test says itself that its figures are not to be believed."
    return ""
