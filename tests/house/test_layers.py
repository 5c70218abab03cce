"""A room imports only rooms that lie below it, function bodies included; no modules import each other in circles."""

from __future__ import annotations

from tests.support.command import ROOT
from tests.support.imports import Import, all_imports, circles, module_files

# From the ground up. A room imports rooms of earlier lines, and itself.
LAYERS = (
    ("errors",),
    ("utils",),
    ("plan",),
    ("models",),
    ("data", "checkpoint"),
    ("pruning", "recovery", "evaluation", "profiling"),
    ("report",),
    ("monitoring", "kernels", "export"),
    # Training text is sampled by the kernels where there is a GPU.
    ("pipeline",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# Imports that climb all the same, and why. The list shall get shorter.
ALLOWED: dict[tuple[str, str], str] = {
    ("export.optimum_register.register_prunekit", "cli"): "`optimum-cli export prunekit` is a command",
}


def room(module: str) -> str:
    """The first name below ``prunekit``."""
    return [*module.split("."), "__init__"][1]


def climbs(each: Import) -> bool:
    importer, target = room(each.importer), room(each.target)
    return importer != target and RANK[target] >= RANK[importer]


def test_every_room_has_a_layer() -> None:
    assert {room(name) for name in module_files(ROOT)} <= RANK.keys()


def test_a_room_imports_only_rooms_below_it() -> None:
    found = {
        (each.importer.removeprefix("prunekit."), each.target.removeprefix("prunekit."))
        for each in all_imports(module_files(ROOT))
        if climbs(each)
    }
    assert not found - ALLOWED.keys(), "these imports climb"
    assert not ALLOWED.keys() - found, "these no longer climb: take them off the list"


def test_no_modules_import_each_other() -> None:
    """In functions and for types neither."""
    assert circles(all_imports(module_files(ROOT))) == []
