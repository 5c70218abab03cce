"""Biases that a family's config can switch on, to hold what removed inputs added on average."""

from __future__ import annotations

from typing import Any

from prunekit.models.families import BIASES, Coupling, Family


def _prunable(coupling: Coupling, units: tuple[str, ...]) -> bool:
    return "ffn" in units if "ffn" in coupling.parts else bool({"kv", "query"} & set(units))


def addable(family: Family, config: Any, units: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of ModelShape that compensation switches on in a model of that config when ``units`` are pruned, and
    what a plan's provenance says of it: the ``projections`` that get a bias, and, where some can't, ``without``, a
    sentence."""
    changes: dict[str, Any] = {}
    carried, bare = [], []
    for coupling in family.output_projections():
        if not _prunable(coupling, units):
            continue
        field = getattr(family, coupling.bias)
        if family.flag(field, config):
            carried.append(coupling.module)
        elif isinstance(field, str):
            carried.append(coupling.module)
            changes |= {flag: True for flag in BIASES if getattr(family, flag) == field}
        else:
            bare.append(coupling.module)
    said: dict[str, Any] = {"projections": carried}
    if bare:
        names = " and ".join(module.rpartition(".")[2] for module in bare)
        said["without"] = (
            f"{family.name} models have no bias on {names}, so what is cut of its input is not compensated there."
        )
    return changes, said
