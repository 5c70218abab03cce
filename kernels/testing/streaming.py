"""What decides how near a decode kernel comes to the memory's bandwidth, read from its machine code and its grid.

A kernel that only streams weights is slow for one of few reasons: too few bytes on their way (Little's law: bandwidth
times latency, 36 KB a multiprocessor on an H200), programs that are shared out unevenly, instructions, or weights that
are asked for only after the kernel before has ended. None of them needs a GPU to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.testing.aot import MachineCode, compile_launch

# Of one multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, technical specifications).
_WARPS, _REGISTERS, _SHARED, _BLOCKS = 64, 65536, 228 * 1024, 32
_MULTIPROCESSORS = 132
_LEAST_IN_FLIGHT = 48 * 1024
# Over all multiprocessors, busy or not: what an H200's memory needs (4.8 TB/s for 1 µs).
_LEAST_ON_AVERAGE = 36 * 1024
_MOST_UNEVEN = 1.15
_MOST_INSTRUCTIONS = 0.11
# Waves of programs that last long: a second one that is nearly empty doubles the time.
_FULL_WAVES = 1.9


@dataclass(frozen=True)
class Streaming:
    """One launch with ``rows`` rows of input on an H100 or H200.

    ``resident`` is how many programs one multiprocessor holds at once, ``in_flight`` how many bytes of weights it has
    on their way at most, ``last`` the same in the last wave, on the mean of all multiprocessors; ``waves`` is how often
    all places are taken, ``uneven`` the share of the busiest multiprocessor over the mean, ``early_loads`` the 16-byte
    loads before the wait for the kernel before, ``instructions`` those of a warp for each byte of weights.
    """

    name: str
    rows: int
    grid: int
    registers: int
    shared: int
    resident: int
    in_flight: int
    last: int
    waves: float
    uneven: float
    early_loads: int
    instructions: float
    once: bool

    def failures(self) -> list[str]:
        """The gates that it doesn't pass, in words."""
        failed = []
        if self.in_flight < _LEAST_IN_FLIGHT:
            failed.append(f"{self.in_flight:,} bytes in flight, {_LEAST_IN_FLIGHT:,} wanted")
        if self.instructions > _MOST_INSTRUCTIONS:
            failed.append(f"{self.instructions:.3f} instructions a byte")
        if self.rows > 1:
            # Pipelines through shared memory, which ask for nothing early; those that run share the memory's bandwidth.
            if self.waves < _FULL_WAVES and self.last < _LEAST_ON_AVERAGE:
                failed.append(f"{self.last:,} bytes in flight in the last wave, {_LEAST_ON_AVERAGE:,} wanted")
            return failed
        # Programs without a loop end one by one, so that a further wave costs no more than its share.
        if (self.once or self.waves <= 1) and self.uneven > _MOST_UNEVEN:
            failed.append(f"the busiest multiprocessor has {self.uneven:.2f} times the mean")
        if not self.once and 1 < self.waves < _FULL_WAVES:
            failed.append(f"{self.waves:.2f} waves of programs with a loop")
        if self.early_loads == 0:
            failed.append("no weight is asked for before the wait")
        return failed

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.rows} rows: {self.grid} programs, {self.registers} registers, {self.shared} B shared, "
            f"{self.resident} resident, {self.in_flight // 1024} KB in flight, {self.last // 1024} in the last wave, "
            f"{self.waves:.2f} waves, uneven {self.uneven:.2f}, {self.early_loads} early loads, "
            f"{self.instructions:.3f} instructions a byte"
        )


def weight_of(launch: Launch) -> torch.Tensor:
    """The weight that a launch reads."""
    weight: torch.Tensor = next(launch.args[name] for name in ("weight_ptr", "gate_up_ptr") if name in launch.args)
    return weight


def streaming(name: str, launch: Launch) -> Streaming:
    """Compile ``launch`` for compute capability 9.0 and read it. It must have BLOCK_N, BLOCK_F or BLOCK_P rows a
    program, BLOCK_K columns at a time, and STAGES, as the decode kernels have."""
    code = compile_launch(replace(launch, overlap=True), 90)
    args, warps = launch.args, launch.num_warps
    grid = 1
    for size in launch.grid:
        grid *= size
    registers = 32 * -(-code.registers // 8) * 8
    places = min(_WARPS // warps, _REGISTERS // registers // warps, _SHARED // (code.shared + 1024), _BLOCKS)
    resident = min(places, -(-grid // _MULTIPROCESSORS))
    rows = args["BLOCK_N"] if "BLOCK_N" in args else 2 * args.get("BLOCK_F", args.get("BLOCK_P", 0))
    block = rows * args["BLOCK_K"] * weight_of(launch).element_size()
    once = args["rows"] == 1 and args["ONCE"]
    turns = 1 if once else (max(1, args["STAGES"] - 1) if args["STAGES"] else 2)
    counted = code.instructions if once else code.in_loops
    issued = sum(count for opcode, count in counted.items() if opcode != "NOP")
    left = grid % (_MULTIPROCESSORS * places) or min(grid, _MULTIPROCESSORS * places)
    return Streaming(
        name,
        args["rows"],
        grid,
        code.registers,
        code.shared,
        resident,
        resident * block * turns,
        left * block * turns // _MULTIPROCESSORS,
        grid / (_MULTIPROCESSORS * places),
        -(-grid // _MULTIPROCESSORS) * _MULTIPROCESSORS / grid,
        _early(code),
        issued * warps / block,
        once,
    )


def _early(code: MachineCode) -> int:
    before = code.opcodes[: code.opcodes.index("ACQBULK")]
    return sum(opcode.startswith("LDG") and "128" in opcode for opcode in before)
