"""What does a launch cost, and what does it bring that kernels start before the last one ends?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common.timer import one_pass, spread
from benchmarks.gpu_check.blocks.headline import OURS, Benches
from benchmarks.gpu_check.blocks.headline import brief as of_models
from benchmarks.gpu_check.tiny_kernel import Small
from benchmarks.gpu_check.work import Context, Measurement
from prunekit.kernels.ops.utils.backend import multiprocessors
from prunekit.kernels.ops.utils.dispatch import can_overlap
from prunekit.kernels.tuning.measure import interleaved

NEEDS_CEILINGS = True


def measurements(context: Context) -> Iterator[Measurement]:
    """From single launches to whole steps."""
    sizes = context.sizes
    every = 2 if context.sizes.is_tiny else multiprocessors(context.device)
    for programs, loaded in ((1, 0), (every, 0), (every, 8192)):
        name = f"{sizes.launches} launches of {programs} programs, each after the last" + (
            f", {2 * loaded // 1024} KB of weights each" if loaded else ""
        )
        fields = {"programs": programs, "loaded_bytes": 2 * loaded, "launches": sizes.launches}
        yield Measurement(name, fields, lambda programs=programs, loaded=loaded: _small(context, programs, loaded))
    for index, layer in enumerate(sizes.layers):
        text = f"{layer.count} layers of {layer.hidden}"
        yield Measurement(
            f"{text}, launches that wait and that don't",
            {"layers": text},
            # What the first says is what the table holds.
            lambda layer=layer, name="other_entry" if index else "entry": {
                name: context.chosen("overlap", {}, [layer])
            },
        )
    batch, prompt = sizes.serving[0]
    benches = Benches(context)
    for model in sizes.models:
        # A rehearsal measures all, as what is noted for a GPU holds all.
        if not context.is_rehearsal and _is_known(context, model.name, batch, prompt):
            continue
        fields = {"whole_model": True, "model": model.name, "variant": "dense"}
        yield Measurement(
            f"{model.name}, a whole step",
            fields,
            lambda model=model: benches.get(model, "dense").measure(batch, prompt, OURS),
            needs_s=8.0,
        )
    benches.close()


def _is_known(context: Context, model: str, batch: int, prompt: int) -> bool:
    """Whether the headline has measured that whole step, with launches that wait and that don't."""
    return any(
        (record.get("model"), record.get("variant"), record.get("batch"), record.get("prompt"))
        == (model, "dense", batch, prompt)
        and "tpot" in record.get("arms", {}).get("ours_waiting", {})
        for record in context.records("headline")
    )


def brief(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    if "us_a_launch" in record:
        return ", ".join(
            f"{name} {value['median_us']:.3f} us a launch" for name, value in record["us_a_launch"].items()
        )
    if "arms" in record:
        return of_models(record)
    return str((record.get("entry") or record.get("other_entry") or {}).get("us"))


def _small(context: Context, programs: int, loaded: int) -> dict[str, Any]:
    """Microseconds of each of the launches in one graph."""
    count = context.sizes.launches
    arms = {"waiting": False} | ({"overlapping": True} if can_overlap(context.device) else {})
    smalls = {name: Small(context.arena, programs, loaded, overlap=overlap) for name, overlap in arms.items()}
    passes = {name: one_pass([small.step] * count, context.device) for name, small in smalls.items()}
    times = interleaved(passes, context.device, rounds=context.sizes.rounds)
    if not context.is_noting:
        for small in smalls.values():
            small.check()
    return {"us_a_launch": {name: spread([value / count for value in values]) for name, values in times.items()}}
