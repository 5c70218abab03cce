"""Knobs: the settings that a recipe can change, each written once, as a field of the config that obeys it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from prunekit.errors import PrunekitError

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class Knob:
    """One setting. ``name`` is what users write, ``field`` its name in ``config``; ``default`` is the config's own."""

    name: str
    field: str
    config: type
    type: Any
    default: Any
    help: str

    def fits(self, value: Any) -> bool:
        """Whether ``value`` has the type of this knob."""
        if get_origin(self.type) is tuple:
            return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
        return any(_is(value, each) for each in get_args(self.type) or (self.type,))


def knob(default: Any, about: str, *, name: str | None = None) -> Any:
    """A dataclass field that users can set, under ``name`` where the field's own says too little by itself."""
    return field(default=default, metadata={"knob": name, "help": about})


def knobs_of(config: type) -> Iterator[Knob]:
    """The knobs among the fields of a dataclass."""
    types = get_type_hints(config)
    for each in fields(config):
        if "knob" in each.metadata:
            name = each.metadata["knob"] or each.name
            yield Knob(name, each.name, config, types[each.name], each.default, each.metadata["help"])


def split_setting(text: str) -> tuple[str, str]:
    """``"steps=20"`` → ``("steps", "20")``. Raises PrunekitError where it is no setting and its value."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise PrunekitError(f"--set takes a setting and its value, such as steps=20, got {text!r}.")
    return name.replace("-", "_"), value


def parse_value(known: Knob, value: str) -> Any:
    """``value`` in the type of the knob. Raises PrunekitError where it is of another."""
    kinds = types_of(known.type)
    try:
        if bool in kinds:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        if int in kinds:
            return int(value)
        return float(value) if float in kinds else value
    except (KeyError, ValueError):
        raise PrunekitError(f"{known.name} takes {words(known.type)}, got {value!r}.") from None


def types_of(kind: Any) -> tuple[Any, ...]:
    """The types that a union names; the type itself where it is none."""
    return getattr(kind, "__args__", None) or (kind,)


def words(kind: Any) -> str:
    """A type in plain words."""
    if getattr(kind, "__origin__", None) is tuple:
        return "names, separated by commas"
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return next((text for each, text in named.items() if each in types_of(kind)), "names")


def told_of(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What ``given``, values by the names of knobs, says of ``config``: by the names of its fields."""
    return {each.field: given[each.name] for each in knobs_of(config) if each.name in given}


def turned(config: _Config, given: Mapping[str, Any]) -> _Config:
    """``config`` with those of its knobs turned that ``given`` names."""
    changed: _Config = replace(config, **told_of(type(config), given))  # type: ignore[type-var]
    return changed


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)
