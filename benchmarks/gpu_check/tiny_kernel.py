"""A kernel that does nothing but what a launch costs: it waits for the one before, and adds one."""

from __future__ import annotations

import torch

from prunekit.kernels.ops.utils._triton import jit, let_next_start, tl, wait_for_previous
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.tuning.arena import Arena

_WIDTH = 128


@jit
def _small_kernel(in_ptr, out_ptr, weight_ptr, WIDTH: tl.constexpr, LOADED: tl.constexpr, PDL: tl.constexpr):
    """out[p] = in[p] + 1 for each program p; LOADED weights of its own are asked for before the wait, and count
    nothing."""
    let_next_start(PDL)
    program = tl.program_id(0)
    total = 0.0
    if LOADED > 0:
        weight = tl.load(weight_ptr + program * LOADED + tl.arange(0, LOADED)).to(tl.float32)
        total = tl.minimum(tl.sum(tl.abs(weight), axis=0), 0.0)
    wait_for_previous(PDL)
    where = program * WIDTH + tl.arange(0, WIDTH)
    tl.store(out_ptr + where, tl.load(in_ptr + where) + 1.0 + total)


class Small:
    """Launches of it, each reading what the one before has written."""

    def __init__(self, arena: Arena, programs: int, loaded: int, *, overlap: bool):
        self.programs, self.loaded, self.overlap = programs, loaded, overlap
        self._arena = arena
        self.states = torch.zeros(2, programs, _WIDTH, device=arena.memory.device)
        self._steps = 0

    def step(self) -> None:
        """One launch."""
        source, target = (self.states[(self._steps + place) % 2] for place in (0, 1))
        self._steps += 1
        # Others each time, or they would come out of the L2 cache.
        weight = self._arena.take(max(self.programs * self.loaded, 1))
        arguments = {"in_ptr": source, "out_ptr": target, "weight_ptr": weight}
        constants = {"WIDTH": _WIDTH, "LOADED": self.loaded}
        Launch(_small_kernel, (self.programs,), {**arguments, **constants}, overlap=self.overlap).run()

    def check(self) -> None:
        """Raises ArithmeticError where not every program has added one to what the launch before it left."""
        off = (self.states[0] - self.states[1]).abs()
        if not ((off == 1).all() and (self.states == self.states[:, :1, :1]).all()):
            raise ArithmeticError("launches did not add one after the other")
