"""Compile a launch for a GPU that isn't there, and read what the machine code does.

Needs Triton (whose wheel brings NVIDIA's assembler and disassembler) and neither a driver nor a GPU. Can't run in a
process with TRITON_INTERPRET set: there, kernels are no longer compilable.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from prunekit.kernels.ops.utils.launch import Launch
from prunekit.utils.files.leftovers import temporary_folder

# Shared memory in bytes that a block may opt in to (CUDA C++ Programming Guide, technical specifications).
MAX_SHARED = {80: 166_912, 86: 101_376, 87: 166_912, 89: 101_376, 90: 232_448}
ARCHITECTURES = tuple(MAX_SHARED)

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_BRANCH_TARGET = re.compile(r"0x([0-9a-f]+)")
# Of Triton's own language: a value and what it is made from, the pointer of a load, the first value of a line.
_DEFINITION = re.compile(r"(%[\w#]+)(?::\d+)? = (.*)")
_LOAD = re.compile(r"tt\.load (%[\w#]+)")
_FIRST = re.compile(r"%[\w#]+")
# Of newer Tritons, and of 3.6.
_WAIT = re.compile(r"tt\.grid_dependency_wait|griddepcontrol\.wait")


@dataclass(frozen=True)
class MachineCode:
    """What one kernel became for one architecture.

    ``spilled`` is bytes of local memory a thread, ``shared`` bytes a block. ``instructions`` and ``in_loops`` count
    full opcodes (``LDG.E.128``), in the whole kernel and inside loops; ``opcodes`` are all of them in order.
    """

    arch: int
    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]
    in_loops: Counter[str]
    opcodes: tuple[str, ...]

    @staticmethod
    def _narrow(opcode: str) -> bool:
        return opcode.startswith("LDG") and any(part in ("U8", "S8", "U16", "S16") for part in opcode.split("."))

    @property
    def narrow_loads(self) -> int:
        """Loads of global memory of one or two bytes inside loops: the mark of the alignment cliff."""
        return sum(count for opcode, count in self.in_loops.items() if self._narrow(opcode))

    @property
    def narrow_loads_anywhere(self) -> int:
        """The same in the whole kernel."""
        return sum(count for opcode, count in self.instructions.items() if self._narrow(opcode))

    @property
    def wide_loads(self) -> int:
        """16-byte loads of global memory and asynchronous copies."""
        wide = sum(
            count for opcode, count in self.instructions.items() if opcode.startswith("LDG.") and "128" in opcode
        )
        return wide + self.async_copies

    @property
    def async_copies(self) -> int:
        """Copies from global to shared memory that bypass registers: cp.async of 16 bytes, or TMA."""
        return sum(
            count
            for opcode, count in self.instructions.items()
            if (opcode.startswith("LDGSTS") and "128" in opcode) or opcode.startswith(("UTMALDG", "UBLKCP"))
        )


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """(types, constants, attributes) of the launch's arguments, specialised as Triton's own launcher does.

    Tensors are taken to be aligned to 16 bytes, as those of PyTorch's allocator are.
    """
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    arguments = launch.arguments
    for index, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        value = arguments[name]
        if parameter.is_constexpr or value is None:
            types[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            types[name] = _POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, bool):
            types[name] = "u1"
        elif isinstance(value, int):
            if value == 1:
                types[name] = "constexpr"
                constants[name] = value
                continue
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            raise TypeError(f"Argument {name} of {launch.kernel.__name__} is a {type(value).__name__}.")
    return types, constants, attributes


_done: dict[Any, tuple[MachineCode, str]] = {}


def compile_launch(launch: Launch, arch: int) -> MachineCode:
    """Compile the launch's kernel for compute capability ``arch`` (80 for 8.0). Equal signatures compile once."""
    return _compiled(launch, arch)[0]


def _compiled(launch: Launch, arch: int) -> tuple[MachineCode, str]:
    """Its machine code, and what Triton made of its source."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, attributes = signature(launch)
    key = (launch.kernel.__name__, str(types), str(constants), str(attributes), str(launch.options), arch)
    if key not in _done:
        source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
        _done[key] = _read(arch, compiled.asm["cubin"], compiled.metadata.shared), compiled.asm["ttir"]
    return _done[key]


def read_before_wait(launch: Launch) -> set[str]:
    """The names of the pointer arguments that a launch reads before it waits for the one before it."""
    text = _compiled(replace(launch, overlap=True), 90)[1]
    wait = _WAIT.search(text)
    assert wait, f"{launch.kernel.__name__} never waits"
    before = text[: wait.start()]
    made = {name: rest for name, rest in _DEFINITION.findall(before)}
    found = set()
    for pointer in _LOAD.findall(before):
        while pointer in made:
            (pointer,) = _FIRST.findall(made[pointer])[:1]
        found.add(pointer.removeprefix("%"))
    return found


@lru_cache
def _tool() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def _read(arch: int, cubin: bytes, shared: int) -> MachineCode:
    with temporary_folder("kernel") as folder:
        file = folder / "kernel.cubin"
        file.write_bytes(cubin)

        def dump(flag: str) -> str:
            return subprocess.run([_tool(), flag, str(file)], capture_output=True, text=True, check=True).stdout

        usage, sass = dump("-res-usage"), dump("-sass")
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code = [(int(place, 16), opcode, rest) for place, opcode, rest in _INSTRUCTION.findall(sass)]
    loops = []
    for place, opcode, rest in code:
        target = _BRANCH_TARGET.search(rest) if opcode.startswith("BRA") else None
        # A branch to itself is the trap that the assembler puts after the end.
        if target and int(target[1], 16) < place:
            loops.append((int(target[1], 16), place))
    return MachineCode(
        arch=arch,
        registers=numbers.get("REG", 0),
        spilled=max(numbers.get("STACK", 0), numbers.get("LOCAL", 0)),
        shared=shared,
        instructions=Counter(opcode for _, opcode, _ in code),
        opcodes=tuple(opcode for _, opcode, _ in code),
        in_loops=Counter(opcode for place, opcode, _ in code if any(first <= place <= last for first, last in loops)),
    )
