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
    ("pipeline", "monitoring", "kernels", "export"),
    ("cli",),
    ("_register",),
    ("__init__", "__main__"),
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# Imports that climb all the same, and why. The list shall get shorter.
ALLOWED: dict[tuple[str, str], str] = {
    ("export.optimum_register.register_prunekit", "cli"): "`optimum-cli export prunekit` is a command",
    ("models.gguf.config", "export.formats.gguf.architectures"): "one table for reading and writing",
    ("models.gguf.header", "export.formats.gguf.architectures"): "one table for reading and writing",
    ("models.tokenizer.same_tokens", "data.sources"): "tokenizers are compared on the built-in text",
    ("profiling.memory", "export.export"): "the child process that is measured opens any runtime",
    ("profiling.memory", "kernels.runtime.bench_runner"): "the child process that is measured opens any runtime",
    (
        "recovery.flap_bias",
        "pruning.importance.input_moments",
    ): "holds the moments of a layer's inputs, which both need",
    ("recovery.refit", "pruning.allocation.session"): "holds the function that cuts a layer",
    ("utils.quiet", "models.modeling"): "registers pruned classes on the way",
}
# Modules that import each other, in functions or for types; at import time none do. The list shall get shorter.
LATE_CIRCLES = {
    frozenset({"checkpoint.card", "checkpoint.rebuild"}),
    frozenset({"evaluation.task_report", "evaluation.tasks"}),
    frozenset({"export.export", "export.trial"}),
    frozenset({"utils.files.atomic", "utils.files.replacing"}),
    # A GGUF file is a source, and whoever writes one knows the tables by which it is read.
    frozenset(
        {
            "checkpoint.layout",
            "export.formats.gguf.architectures",
            "export.formats.gguf.rope",
            "models.gguf.config",
            "models.gguf.convert",
            "models.gguf.generation",
            "models.gguf.header",
            "models.gguf.rope",
            "models.gguf.tokenizer",
            "models.source",
            "models.tokenizer.check",
            "models.tokenizer.files",
        }
    ),
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


def test_no_modules_import_each_other_at_import_time() -> None:
    assert circles(each for each in all_imports(module_files(ROOT)) if not each.late) == []


def test_modules_that_import_each_other_later_are_known() -> None:
    found = circles(all_imports(module_files(ROOT)))
    assert {frozenset(name.removeprefix("prunekit.") for name in group) for group in found} == LATE_CIRCLES
