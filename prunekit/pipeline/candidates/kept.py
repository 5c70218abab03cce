"""What was found out of candidates, kept between runs: one that was interrupted goes on, and another size costs itself
alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from prunekit.evaluation.perplexity import TextResult
from prunekit.plan import Plan
from prunekit.utils.files.cache import cache_key, cache_place, read_kept, write_kept

_VERSION = 2


@dataclass(frozen=True)
class Measured:
    """What was measured of one model: its ``result`` on the evaluation text, None where there is none for the reason
    ``why`` (``broken``: its logits are no numbers). ``seconds`` are those that the work took which `prunekit prune`
    would do; ``facts`` are JSON values of its own."""

    result: TextResult | None = None
    why: str | None = None
    broken: bool = False
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """Results by what they depend on (``key``: JSON values), in a folder of the cache."""

    folder: Path

    @classmethod
    def of(cls, *key: Any) -> Kept:
        return cls(cache_place("candidates", cache_key([_VERSION, *key])))

    def measured(self, *name: str | None) -> Measured | None:
        """What is kept under that name; None where there is nothing, or it is not as it was written."""
        data = self._read(name)
        try:
            if data is None:
                return None
            result = data.pop("result")
            return Measured(**data, result=None if result is None else TextResult(**result))
        except (KeyError, TypeError):
            return None

    def keep(self, made: Measured, *name: str | None) -> Measured:
        """Keep ``made`` under that name. Returns it."""
        data = {each.name: getattr(made, each.name) for each in fields(made)}
        self._write(name, {**data, "result": None if made.result is None else asdict(made.result)})
        return made

    def plan(self, *name: str | None) -> Plan | None:
        """A plan that is kept; its text is not."""
        data = self._read(name)
        return None if data is None or "plan" not in data else Plan.from_dict(data["plan"], "a plan in the cache")

    def keep_plan(self, plan: Plan, *name: str | None) -> None:
        self._write(name, {"plan": json.loads(plan.to_json())})

    def _read(self, name: tuple[str | None, ...]) -> dict[str, Any] | None:
        return read_kept(self._file(name))

    def _write(self, name: tuple[str | None, ...], data: dict[str, Any]) -> None:
        write_kept(self._file(name), data)

    def _file(self, name: tuple[str | None, ...]) -> Path:
        return self.folder / f"{cache_key(list(name))}.json"
