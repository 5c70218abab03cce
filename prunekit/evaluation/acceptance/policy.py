"""What a smaller model must reach to be accepted: a policy in TOML, with defaults that every result shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.names import nearest, printable
from prunekit.utils.toml_file import read_toml

REFUSE, ACCEPT = "refuse", "accept"
_WHERE = "The policy"
# The ends of what each number may be; None: no end. All may be left out but those that have a default.
_ENDS: dict[str, tuple[float, float]] = {
    "margin": (0.0001, 0.5),
    "alpha": (0.0001, 0.5),
    "power": (0.5, 0.9999),
    "max_error_rate": (0.0, 1.0),
    "max_flips": (0.0, 1.0),
    "max_length_ratio": (0.01, 1000.0),
    "max_truncated": (0.0, 1.0),
    "max_failed": (0.0, 1.0),
    "max_loss_added": (0.0, 1000.0),
    "min_load_ratio": (0.0, 1000.0),
}


@dataclass(frozen=True)
class Limits:
    """What is asked of a group of records, or of all; None is not asked.

    ``margin``: by how much the error rate may rise, as a share (0.02 is two points), shown by a one-sided test.
    ``max_error_rate``, ``max_flips`` (answers that went from right to wrong or back) and ``max_truncated`` (answers cut
    off at the limit of tokens) are shares of the records, ``max_length_ratio`` is of the mean lengths of answers; all
    four are compared with what was measured, not with the ends of intervals.
    """

    margin: float | None = None
    max_error_rate: float | None = None
    max_flips: float | None = None
    max_length_ratio: float | None = None
    max_truncated: float | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)


@dataclass(frozen=True)
class Policy:
    """What a smaller model must reach. Every field is a key of the TOML file.

    ``margin`` and the other limits of all records are those of :class:`Limits`; ``alpha`` is the error of the one-sided
    test, ``power`` what the sample size is computed for. ``max_failed`` is the share of records for which either model
    may have no answer, or no judgement: above it there is no verdict. ``too_few`` says what the exit code does where
    records are too few to tell: "refuse" or "accept". ``groups`` has limits of single groups, on top. ``eval`` and
    ``serve`` are tables: ``file`` (relative to the policy) is what `prunekit eval -o` or `prunekit bench-server` wrote,
    ``max_loss_added`` (nats a token) or ``min_load_ratio`` (of the highest loads within the SLO) what it must show.
    """

    margin: float = 0.02
    alpha: float = 0.05
    power: float = 0.8
    max_error_rate: float | None = None
    max_flips: float | None = None
    max_length_ratio: float | None = None
    max_truncated: float | None = None
    max_failed: float = 0.01
    too_few: str = REFUSE
    groups: Mapping[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    eval: Mapping[str, Any] | None = None
    serve: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.too_few not in (REFUSE, ACCEPT):
            raise PrunekitError(
                f'{_WHERE} has too_few = {str(self.too_few)[:60]!r}; it is "{REFUSE}" (default) or "{ACCEPT}".'
            )

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """The policy in the TOML file ``path``.

        Raises PrunekitError, in a sentence, where it can't be read, is no TOML, holds a key that is none (the known
        ones are told), or a value that makes no sense.
        """
        path = Path(path)
        made = cls.from_dict(read_toml(path, f"{_WHERE} {path}", "margin = 0.02"), f"{_WHERE} {path}")
        return made._from(path.parent)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = _WHERE) -> Policy:
        """A policy by the names of its fields. Raises PrunekitError as :meth:`load` does."""
        known = [each.name for each in fields(cls)]
        _check_names(data, known, where)
        made = dict(data)
        if "groups" in made:
            made["groups"] = _groups(made["groups"], where)
        for name, limit in (("eval", "max_loss_added"), ("serve", "min_load_ratio")):
            if name in made:
                made[name] = _other(made[name], name, limit, where)
        return cls(**made)

    def _from(self, folder: Path) -> Policy:
        """Files that it names are looked for beside it."""
        for name in ("eval", "serve"):
            told = getattr(self, name)
            if told is not None:
                object.__setattr__(self, name, {**told, "file": str(folder / told["file"])})
        return self

    @property
    def limits(self) -> Limits:
        """What is asked of all records together."""
        return Limits(**{each.name: getattr(self, each.name) for each in fields(Limits)})

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; files by their names, without folders."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["groups"] = {name: _said(asdict(limits)) for name, limits in self.groups.items()}
        for name in ("eval", "serve"):
            if data[name] is not None:
                data[name] = {**data[name], "file": printable(Path(data[name]["file"]).name)}
        return data


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _groups(value: Any, where: str) -> Mapping[str, Limits]:
    if not isinstance(value, dict) or not all(isinstance(each, dict) for each in value.values()):
        raise PrunekitError(f"{where} has groups of another form; write [groups.NAME] and its limits below.")
    known = [each.name for each in fields(Limits)]
    for name, limits in value.items():
        _check_names(limits, known, f"{where}, group {printable(name)[:60]},")
    return MappingProxyType({name: Limits(**limits) for name, limits in value.items()})


def _other(value: Any, name: str, limit: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise PrunekitError(f'{where} has {name} of another form; write [{name}], file = "{name}.json", {limit} = ….')
    _check_names(value, ["file", limit], f"{where}, [{name}],")
    if not isinstance(value.get("file"), str) or not value["file"] or limit not in value:
        raise PrunekitError(f'{where}, [{name}], needs file = "{name}.json" and {limit} = a number.')
    _check_number(limit, value[limit])
    return MappingProxyType(dict(value))


def _check_names(data: Mapping[str, Any], known: list[str], where: str) -> None:
    for name in data:
        if name not in known:
            raise PrunekitError(
                f"{where} has {printable(name)[:60]!r}, which it does not know{nearest(name, known)}; there are "
                f"{', '.join(known)}."
            )


def _check_numbers(values: Any) -> None:
    for each in fields(values):
        value = getattr(values, each.name)
        if each.name in _ENDS and value is not None:
            _check_number(each.name, value)


def _check_number(name: str, value: Any) -> None:
    least, most = _ENDS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        hint = " (2 points are 0.02)" if name in ("margin", "max_error_rate", "max_flips") else ""
        raise PrunekitError(
            f"{_WHERE} has {name} = {str(value)[:60]}; it is a number from {least:g} to {most:g}{hint}."
        )
