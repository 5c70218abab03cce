"""Recipe: everything that decides a plan and how it is carried out, apart from the model, its goals and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.allocations import ALLOCATIONS, AllocationConfig, DropConfig, OptimalConfig
from prunekit.plan.knobs import Knob, knobs_of, parse_value, split_setting, told_of, turned, types_of, words
from prunekit.plan.methods import Method, method
from prunekit.plan.rounding import RoundingConfig
from prunekit.plan.settings import EFFORTS, MUCH_TEXT, CalibrationConfig, Effort, RefitConfig, RescaleConfig
from prunekit.utils.files.atomic import read_json
from prunekit.utils.names import nearest
from prunekit.utils.ranges import encode_ranges, parse_layers

DEFAULT = "prunekit"
"""The method that is taken where none is named."""


@dataclass(frozen=True)
class Recipe:
    """A method with all its settings, the widths allowed, the layers that stay whole (``protected``; None: those that
    the method says) and the seed of every random choice.

    >>> Recipe.of("adapt-pruner", steps=20, ffn_multiple=128).method.allocation.steps
    20
    """

    method: Method
    rounding: RoundingConfig = field(default_factory=RoundingConfig)
    protected: frozenset[int] | None = None
    seed: int = 0

    @classmethod
    def of(cls, method_name: str = DEFAULT, /, **changes: Any) -> Recipe:
        """The method of that name, with the knobs named in ``changes`` turned; None leaves one as the method has it.

        Raises PrunekitError where a name is unknown, a value makes no sense, or a knob has no effect.
        """
        preset = method(method_name)
        given = {name: _typed(name, value) for name, value in changes.items() if value is not None}
        if preset.effort is not None and "effort" in given:
            preset = preset.at(given["effort"])
        chosen = _choosing(preset, given)
        refit, rescale = _solving(preset, chosen, given)
        calibration = turned(_text(preset, chosen, refit), given)
        protected = given.get("protect_layers")
        seed = given.get("seed", preset.calibration.seed)
        return cls(
            replace(chosen, refit=refit, rescale=rescale, calibration=replace(calibration, seed=seed)),
            turned(RoundingConfig(), given),
            protected,
            seed,
        )

    @property
    def calibration(self) -> CalibrationConfig:
        return self.method.calibration

    @property
    def refit(self) -> RefitConfig | None:
        return self.method.refit

    @property
    def rescale(self) -> RescaleConfig | None:
        return self.method.rescale

    @property
    def computes(self) -> bool:
        """Whether something is to be computed on text between the plan and the rebuild."""
        return self.refit is not None or self.method.compensates

    def with_text(self, source: str) -> Recipe:
        """The same on another text."""
        calibration = replace(self.calibration, source=source)
        return replace(self, method=replace(self.method, calibration=calibration))

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the method's name and every knob that has an effect, as :meth:`of` takes them."""
        chosen, kind = self.method, self.method.allocation
        data: dict[str, Any] = {"method": chosen.name}
        if chosen.effort is not None:
            data["effort"] = chosen.effort
        if not chosen.rotates:
            data["allocation"] = kind.name
        if kind.scores_units:
            data["importance"] = chosen.importance
        if kind.scores_layers:
            data["layer_importance"] = chosen.layer_importance
        if kind.cuts_units:
            data |= {"units": list(chosen.units), "compensate": chosen.compensate}
        if not chosen.rotates:
            data |= {"refit": self.refit is not None, "rescale": self.rescale is not None}
        for config in (kind, self.refit, self.rescale, self.calibration, self.rounding):
            if config is not None:
                data |= {each.name: getattr(config, each.field) for each in knobs_of(type(config))}
        if self.protected is not None:
            data["protect_layers"] = encode_ranges(tuple(sorted(self.protected))) or "none"
        data["seed"] = self.seed
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """Reverse of :meth:`to_dict`. Raises PrunekitError as :meth:`of` does."""
        if not isinstance(data, dict) or not isinstance(data.get("method", DEFAULT), str):
            raise PrunekitError('A recipe is a JSON object such as {"method": "adapt-pruner", "steps": 20}.')
        knobs = {name: value for name, value in data.items() if name != "method"}
        return cls.of(data.get("method", DEFAULT), **knobs)


@cache
def knobs() -> Mapping[str, Knob]:
    """All knobs by name. One that several allocations have stands here once."""
    extra = (
        Knob("allocation", "allocation", Method, str, None, "how widths are decided"),
        Knob("refit", "refit", Method, bool, None, "solve what is left of every layer anew, in closed form"),
        Knob("rescale", "rescale", Method, bool, None, "after the refit, tune a factor of each input and output"),
        Knob("protect_layers", "protected", Recipe, str, None, "layers that stay whole, as 0,1,29 or 0-2, or none"),
        Knob("seed", "seed", Recipe, int, 0, "the seed of every random choice"),
    )
    solving = (RefitConfig, RescaleConfig, CalibrationConfig, RoundingConfig)
    configs: tuple[type, ...] = (Method, *ALLOCATIONS.values(), *solving)
    found = [*extra, *(each for config in configs for each in knobs_of(config))]
    named: dict[str, Knob] = {}
    for each in found:
        named.setdefault(each.name, each)
    return named


def knob_named(name: str) -> Knob:
    """The knob of that name. Raises PrunekitError where there is none."""
    if name not in knobs():
        raise PrunekitError(
            f"There is no setting {name!r}{nearest(name, knobs())}; `prunekit methods` lists what there is."
        )
    return knobs()[name]


def parse_setting(text: str) -> tuple[str, Any]:
    """``"steps=20"`` → ``("steps", 20)``. Raises PrunekitError where there is no such setting, or no such value."""
    name, value = split_setting(text)
    return name, _typed(name, parse_value(knob_named(name), value))


# By allocation: what knobs that came later must be for widths to be chosen as before.
_LATER: dict[str, dict[str, Any]] = {OptimalConfig.name: {"redraw_after": 1.0}}


def of_plan(data: Any) -> Any:
    """The recipe that a plan holds, JSON values. A plan names every knob that has an effect, so of one that it does not
    name it knew nothing, whatever that knob does today."""
    if isinstance(data, dict) and data.get("allocation") in _LATER:
        return {**_LATER[data["allocation"]], **data}
    return data


def read_recipe(file: str | Path) -> dict[str, Any]:
    """The method and the settings that a recipe's JSON file names, or a plan: its own. Raises PrunekitError where it
    has none."""
    data = read_json(Path(file), "recipe")
    if isinstance(data, dict) and data.get("format") == "prunekit-plan":
        if data.get("recipe") is None:
            raise PrunekitError(f"{file} is a plan of an earlier version, which holds no recipe; make the plan again.")
        data = of_plan(data["recipe"])
    Recipe.from_dict(data)
    return dict(data)


def put_on_top(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings ``base`` with ``changes``; what only mattered to what the changes switch off goes, and so does what
    another effort sets. A text goes only where an effort had chosen it."""
    off: set[str] = set()
    rescales = changes.get("rescale", changes.get("refit"))
    if changes.get("effort", base.get("effort")) != base.get("effort") and changes["effort"] in EFFORTS:
        chosen = base.get("calib") in {each.calib for each in EFFORTS.values()}
        off |= {each.name for each in fields(Effort) if each.name != "calib" or chosen}
        rescales = changes.get("rescale", changes.get("refit", True) and EFFORTS[changes["effort"]].rescale)
    if changes.get("refit") is False:
        off |= {"rescale", *(each.name for each in knobs_of(RefitConfig))}
    if rescales is False:
        off |= {each.name for each in knobs_of(RescaleConfig)}
    if changes.get("allocation", base.get("allocation")) != base.get("allocation"):
        off |= {"importance", "layer_importance"}
        off |= {each.name for config in ALLOCATIONS.values() for each in knobs_of(config)}
        if changes["allocation"] == DropConfig.name:
            off |= {"units", "compensate", *(each.name for each in knobs_of(RoundingConfig))}
    return {**{name: value for name, value in base.items() if name not in off}, **changes}


def _typed(name: str, value: Any) -> Any:
    """``value`` as the config holds it. Raises PrunekitError where it is of another type."""
    known = knob_named(name)
    if name == "units" and isinstance(value, (str, list)):
        value = tuple(part.strip() for part in (value.split(",") if isinstance(value, str) else map(str, value)))
    if name == "protect_layers":
        return parse_layers(value) if isinstance(value, str) else _layers(value)
    if not known.fits(value):
        raise PrunekitError(f"{name} takes {words(known.type)}, got {value!r}.")
    return float(value) if float in types_of(known.type) else value


def _layers(value: Any) -> frozenset[int]:
    if isinstance(value, (list, tuple, set, frozenset)) and all(type(each) is int and each >= 0 for each in value):
        return frozenset(value)
    raise PrunekitError(f"protect_layers takes layer numbers such as 0,1,29 or 0-2, not {value!r}.")


def _choosing(preset: Method, given: Mapping[str, Any]) -> Method:
    """``preset`` with what chooses units and widths changed as ``given`` says; then it is called custom."""
    kind = _allocation(preset, given)
    changed = {**told_of(Method, given), "allocation": kind}
    if kind.scores_layers and preset.layer_importance is None:
        changed.setdefault("layer_importance", "cosine")
    changed = {name: value for name, value in changed.items() if value != getattr(preset, name)}
    return replace(preset, custom=True, **changed) if changed else preset


def _allocation(preset: Method, given: Mapping[str, Any]) -> AllocationConfig:
    """The allocation asked for. Raises PrunekitError where something has no effect on what it does."""
    name = given.get("allocation", preset.allocation.name)
    if preset.rotates and {"importance", "layer_importance", "allocation", "units"} & set(given):
        raise PrunekitError(
            f"{preset.name} removes no units, so importance, layer_importance, allocation and units have no meaning "
            "there; leave them out."
        )
    if name not in ALLOCATIONS or (ALLOCATIONS[name] is not type(preset.allocation) and name == "rotate"):
        there = [each for each in ALLOCATIONS if each != "rotate"]
        raise PrunekitError(
            f"There is no allocation {name!r}{nearest(name, there)}; choose one of: {', '.join(there)}."
        )
    kind = preset.allocation if name == preset.allocation.name else ALLOCATIONS[name]()
    for idle in _idle(preset, type(kind), given):
        raise PrunekitError(
            f"{idle} has no effect on {preset.name} with the allocation {kind.name}; leave it out, or choose another "
            "method or allocation."
        )
    return turned(kind, given)


def without_effect(method_name: str, changes: Mapping[str, Any]) -> list[str]:
    """The names among ``changes`` that decide nothing for that method, with the allocation that they name."""
    preset = method(method_name)
    kind = ALLOCATIONS.get(changes.get("allocation", preset.allocation.name))
    return [] if kind is None else _idle(preset, kind, changes)


def _idle(preset: Method, kind: type[AllocationConfig], given: Mapping[str, Any]) -> list[str]:
    has = {"importance": kind.scores_units, "layer_importance": kind.scores_layers, "units": kind.cuts_units}
    has |= {"compensate": kind.cuts_units, "effort": preset.effort is not None}
    has |= {each.name: kind.cuts_units for each in knobs_of(RoundingConfig)}
    own = {each.name for each in knobs_of(kind)}
    for config in ALLOCATIONS.values():
        has |= {each.name: each.name in own for each in knobs_of(config)}
    return [each for each in given if not has.get(each, True)]


def _solving(
    preset: Method, chosen: Method, given: Mapping[str, Any]
) -> tuple[RefitConfig | None, RescaleConfig | None]:
    """What follows the cut. Raises PrunekitError where a setting is of what is not done."""
    refits = given.get("refit", preset.refit is not None)
    if refits and chosen.rotates:
        raise PrunekitError(f"{chosen.name} leaves no projection as it was to be refitted; leave refit out.")
    rescales = given.get("rescale", refits and preset.rescale is not None)
    told = ((refits, RefitConfig, "refit", "refitted"), (rescales, RescaleConfig, "rescale", "rescaled"))
    for wanted, config, what, done in told:
        idle = [each.name for each in knobs_of(config) if each.name in given]
        if idle and not wanted:
            raise PrunekitError(f"{idle[0]} says how to {what}, but nothing is {done}; set {what}=true too.")
    return (
        turned(preset.refit or RefitConfig(), given) if refits else None,
        turned(preset.rescale or RescaleConfig(), given) if rescales else None,
    )


def _text(preset: Method, chosen: Method, refit: RefitConfig | None) -> CalibrationConfig:
    """The text of the method; more of it where what was asked for needs more than the method does by itself."""
    if (refit or chosen.allocation.draws_curves) and preset.refit is None:
        return replace(MUCH_TEXT, source=preset.calibration.source)
    return preset.calibration
