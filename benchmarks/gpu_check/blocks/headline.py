"""How fast are whole models, dense and pruned, and beside transformers?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu_check.work import Context, Measurement
from benchmarks.models.bench import ModelBench
from benchmarks.models.shapes import Model

NEEDS_CEILINGS = True
OURS = ("ours", "ours_waiting")
# Compiling takes longest, and a model whose layers differ longer than a dense one.
COMPILE_S = 200.0


def measurements(context: Context) -> Iterator[Measurement]:
    """First the answer: one sequence, a short prompt. Then transformers beside it, longer prompts, batches, and last
    what has to be compiled on the spot."""
    sizes = context.sizes
    benches = Benches(context)
    short, *others = sizes.serving
    kinds = ("dense", "irregular")

    def some(
        serving: Sequence[tuple[int, int]], variants: Sequence[str], arms: tuple[str, ...]
    ) -> Iterator[Measurement]:
        for batch, prompt in serving:
            for model in sizes.models:
                for variant in variants:
                    yield _measurement(benches, model, variant, batch, prompt, arms)

    yield from some([short], kinds, OURS)
    yield from some([short], ["rounded"], OURS)
    if not context.is_noting:
        yield from some([short], kinds, ("eager", "ours"))
    yield from some(others[:1], kinds, OURS)
    if not context.is_noting:
        yield from some(others[:1], ["dense"], ("eager", "ours"))
    yield from some(others[1:], kinds, OURS)
    yield from some(others, ["rounded"], OURS)
    if not context.is_noting and sizes.compile is not None:
        # The goals are of the small model.
        many = [short, *(each for each in others if each[1] == short[1])]
        for model in sizes.models:
            for batch, prompt in many:
                yield _measurement(benches, model, "dense", batch, prompt, ("compiled", "ours"))
            yield _measurement(benches, model, "irregular", *short, ("compiled", "ours"))
    benches.close()


def brief(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    texts = []
    for name, arm in record["arms"].items():
        if "error" in arm:
            texts.append(f"{name} FAILED {arm['error'][:100]}")
        else:
            times = f"{arm['ttft']['median_us'] / 1e3:,.2f} ms, {arm['tpot']['median_us']:,.1f} us a token"
            texts.append(f"{name} {times}, {arm['share_of_copy']:.0%}")
    return "; ".join(texts)


def _measurement(
    benches: Benches, model: Model, variant: str, batch: int, prompt: int, arms: tuple[str, ...]
) -> Measurement:
    beside = "" if arms == OURS else f", {arms[0]}"
    tokens = batch * prompt * (8 if "8b" in model.name else 1)
    needs = 4.0 + tokens / 40_000 + (40.0 if "compiled" in arms else 5.0 if "eager" in arms else 0.0)
    limit = COMPILE_S + 60 if "compiled" in arms else 90.0

    def run() -> dict[str, Any]:
        prepare = max(20.0, min(COMPILE_S, benches.context.left_s())) if "compiled" in arms else 60.0
        return benches.get(model, variant).measure(batch, prompt, arms, prepare)

    fields = {"whole_model": True, "model": model.name, "variant": variant, "batch": batch, "prompt": prompt}
    return Measurement(f"{model.name}, {variant}, batch {batch}, prompt {prompt}{beside}", fields, run, needs, limit)


class Benches:
    """The models of a block, kept while there is room: packing copies each once."""

    def __init__(self, context: Context):
        self.context = context
        self._made: dict[tuple[str, str], ModelBench] = {}

    def get(self, model: Model, variant: str) -> ModelBench:
        key = (model.name, variant)
        if key not in self._made:
            shape, sizes = self.context.variants(model)[variant], self.context.sizes
            self._make_room(shape.parameters * sizes.measured_in.itemsize)
            self._made[key] = ModelBench(
                model,
                shape,
                self.context.arena,
                self.context.best,
                compile_options=sizes.compile,
                tokens=sizes.tokens,
                rounds=sizes.model_rounds,
            )
        return self._made[key]

    def _make_room(self, needed: int) -> None:
        """Leaves half of the memory for caches."""
        if self.context.device.type == "cuda":
            free, whole = torch.cuda.mem_get_info(self.context.device)
            if free - needed < whole / 2:
                self.close()

    def close(self) -> None:
        """Give the memory back."""
        for bench in self._made.values():
            bench.close()
        self._made.clear()
