"""What pruning gives, written down: widths, kept units and weights of every method, made by the command line.

``python tests/golden/golden.py write`` writes golden.json, ``check`` compares what the code gives now with it. Both do
the tiny models (a quarter of a minute) and SmolLM2 (minutes); ``--part tiny`` leaves the latter out.

Scores and least squares differ in their last bits from one kind of processor to another. Widths, kept units and slices
of weights don't follow them; weights that were solved do, and are only compared on the kind of machine that wrote them.
To compare two versions on another kind of machine, write with the older (``--values FILE``) and check with the newer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VALUES = HERE / "golden.json"

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(HERE.parents[1]))

import torch
from safetensors.torch import load_file

from prunekit.cli import main as prunekit_main
from prunekit.utils.files.cache import tensors_digest
from tests.support.command import write_text
from tests.support.tiny import one_thread, tiny_model
from tests.support.tiny_text import tiny_tokenizer

METHODS = (
    "adapt-pruner",
    "llm-pruner",
    "flap",
    "magnitude",
    "wanda-sp",
    "minitron",
    "random",
    "fisher-global",
    "shortgpt",
    "prunekit",
    "slicegpt",
)
# Weights that are computed and not sliced, by what the method is.
SOLVED = {
    "flap": r"\.(o_proj|down_proj)\.bias$",
    "prunekit": r"_proj\.(weight|bias)$",
    "slicegpt": r"",
    "refit": r"_proj\.(weight|bias)$",
}
TEXT = "TEXT"
"""Among a command's arguments: the text file beside the models."""
SHORT = ("--set", "sequences=16", "--set", "length=32", "--set", "ffn_multiple=1", "--device", "cpu")
# What is added up in bfloat16 where the processor can would be bound to such processors.
EXACT = ("--dtype", "float32")
BLOCKS = ("--blocks", "0.7")
READ = ("--calib", TEXT)
# As the default method planned before it drew curves again, and does at `--effort quick`.
ONCE = ("--set", "redraw_after=1")


@dataclass(frozen=True)
class Case:
    """One ``prunekit prune``. ``solved`` matches the names of weights that are not slices; ``rounded`` says that widths
    too follow from sums whose last bits, or more, differ between processors."""

    model: str
    name: str
    arguments: tuple[str, ...]
    solved: str | None = None
    rounded: bool = False

    @property
    def id(self) -> str:
        return f"{self.model}/{self.name}"


def _method(model: str, method: str) -> Case:
    exact = (*EXACT, *ONCE) if method == "prunekit" else ()
    return Case(model, method, ("--method", method, *BLOCKS, *READ, *SHORT, *exact), SOLVED.get(method))


def _llama(name: str, method: str, *arguments: str, goal: tuple[str, ...] = BLOCKS, **fields: Any) -> Case:
    """What else decides a result, on the tiny Llama."""
    reading = () if "--calib" in arguments else READ
    once = ONCE if method == "prunekit" and not any("redraw_after" in each for each in arguments) else ()
    return Case("llama", name, ("--method", method, *goal, *reading, *SHORT, *once, *arguments), **fields)


CASES = (
    *(_method("llama", method) for method in METHODS),
    *(_method("qwen2", method) for method in METHODS),
    *(_method("phi3", method) for method in ("flap", "fisher-global", "prunekit", "slicegpt")),
    *(_method("gemma2", method) for method in ("adapt-pruner", "minitron", "shortgpt")),
    # Settings that most users name.
    _llama("uniform layout", "magnitude", "--layout", "uniform"),
    _llama("bfloat16 on disk", "wanda-sp", "--store-dtype", "bfloat16"),
    _llama("float16 on disk, solved", "prunekit", "--store-dtype", "float16", *EXACT, solved=SOLVED["prunekit"]),
    _llama("widths for two devices", "fisher-global", "--round-for", "tp=2", "--set", "ffn_multiple=4"),
    _llama("some layers whole", "llm-pruner", "--set", "protect_layers=2"),
    _llama("another seed", "random", "--set", "seed=1"),
    _llama("text that comes with prunekit", "fisher-global", "--calib", "builtin"),
    _llama(
        "text that the model writes",
        "prunekit",
        "--calib",
        f"{TEXT}:0.5,self:0.5",
        *EXACT,
        solved=SOLVED["prunekit"],
        rounded=True,
    ),
    _llama("as the processor likes", "prunekit", solved=SOLVED["prunekit"], rounded=True),
    _llama("refit", "fisher-global", "--set", "refit=true", *EXACT, solved=SOLVED["refit"]),
    _llama(
        "curves drawn again",
        "prunekit",
        "--set",
        "redraw_after=0.2",
        *EXACT,
        goal=("--blocks", "0.5"),
        solved=SOLVED["prunekit"],
    ),
    _llama("no rescaling", "prunekit", "--set", "rescale=false", *EXACT, solved=SOLVED["refit"]),
    _llama("no refit", "prunekit", "--set", "refit=false", *EXACT),
    # Goals.
    _llama("goal params", "magnitude", goal=("--params", "0.8")),
    _llama("goal weights", "fisher-global", goal=("--weights", "600KB")),
    _llama("goal flops", "prunekit", "--set", "refit=false", *EXACT, goal=("--flops", "0.7", "--context", "64")),
    _llama("goal kv-cache", "prunekit", "--set", "refit=false", *EXACT, goal=("--kv-cache", "0.5", "--params", "0.9")),
    # Knobs.
    _llama("units query", "minitron", "--set", "units=ffn,query"),
    _llama("units all", "fisher-global", "--set", "units=ffn,kv,query", goal=("--blocks", "0.4")),
    _llama(
        "units sublayers",
        "prunekit",
        "--set",
        "units=ffn,attention-layer,ffn-layer",
        *EXACT,
        goal=("--blocks", "0.4"),
        solved=SOLVED["prunekit"],
    ),
    *(
        _llama(f"importance {name}", "adapt-pruner", "--set", f"importance={name}", "--set", "steps=8")
        for name in ("taylor2", "fisher", "magnitude-l1")
    ),
    *(
        _llama(f"layer importance {name}", "adapt-pruner", "--set", f"layer_importance={name}", "--set", "steps=8")
        for name in ("euclidean", "manhattan", "loss")
    ),
    _llama("attention slower", "magnitude", "--set", "attention_ratio=0.2"),
)
SMOLLM2 = tuple(
    Case(
        "smollm2-135m",
        method,
        ("--method", method, "--blocks", "0.79", "--set", "sequences=8", "--set", "length=64", "--device", "cpu"),
    )
    for method in ("adapt-pruner", "magnitude")
)
PARTS: Mapping[str, tuple[Case, ...]] = {"tiny": CASES, "smollm2": SMOLLM2}


def machine() -> dict[str, Any]:
    """What decides the last bits of sums."""
    capable = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    said = Path("/proc/cpuinfo")
    vendor = re.search(r"^vendor_id\s*: *(\S+)", said.read_text(), re.MULTILINE) if said.is_file() else None
    return {
        "processor": platform.machine(),
        "vendor": vendor[1] if vendor else "unknown",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name.removeprefix("_is_"): bool(getattr(torch.cpu, name, bool)()) for name in capable},
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "torch": torch.__version__,
    }


def save_models(folder: Path) -> dict[str, str]:
    """The tiny models and the text that they are pruned on. Returns their digests."""
    digests = {}
    for model_type in dict.fromkeys(case.model for case in CASES):
        model = tiny_model(model_type)
        set_weights(model)
        model.save_pretrained(folder / model_type)
        tiny_tokenizer().save_pretrained(folder / model_type)
        digests[model_type] = tensors_digest(sorted(load_file(folder / model_type / "model.safetensors").items()))
    text = write_text(folder / "text.txt", 12_000)
    return {**digests, "text": _sha256(text.read_bytes())}


def set_weights(model: torch.nn.Module) -> None:
    """Whole numbers divided by a power of two: torch.randn's last bits depend on the processor."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Uniform between -1 and 1.
            noise = torch.randint(-(1 << 15), (1 << 15) + 1, parameter.shape, generator=generator) / (1 << 15)
            if "norm" in name:
                parameter.copy_(1 + noise / 2)
            else:
                parameter.copy_(noise * (1 if "embed" in name else 0.25))


def record(case: Case, models: Path, scratch: Path) -> dict[str, Any]:
    """What ``case`` gives now: its widths, and the digests of what it keeps and of its weights."""
    model = models / case.model if case in CASES else case.model
    arguments = [argument.replace(TEXT, str(models / "text.txt")) for argument in case.arguments]
    out = scratch / "pruned"
    run_command("prune", str(model), "-o", str(out), *arguments)
    try:
        return _describe(case, out)
    finally:
        shutil.rmtree(out)


def _describe(case: Case, out: Path) -> dict[str, Any]:
    plan = json.loads((out / "plan.json").read_text())
    shapes = ("index", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    files = sorted(out.glob("*.safetensors"))
    tensors = sorted(item for file in files for item in load_file(file).items())
    solved = [item for item in tensors if case.solved is not None and re.search(case.solved, item[0])]
    names = {name for name, _ in solved}
    sliced = [item for item in tensors if item[0] not in names]
    return {
        "widths": ", ".join(" ".join(str(layer[name]) for name in shapes) for layer in plan["layers"]),
        "kept": _sha256(json.dumps([layer["keep"] for layer in plan["layers"]], sort_keys=True).encode()),
        "changes": plan.get("changes", {}),
        **({"sliced": tensors_digest(sliced)} if sliced else {}),
        **({"solved": tensors_digest(solved)} if solved else {}),
        "files": {file.name: _sha256(file.read_bytes()) for file in files},
    }


def differences(case: Case, expected: Mapping[str, Any], found: Mapping[str, Any], same_machine: bool) -> list[str]:
    """What differs and must not: everything on a machine of the kind that wrote ``expected``, else what is independent
    of that."""
    names = [*dict.fromkeys((*expected, *found))]
    if not same_machine:
        unsure = {"solved", "files"} if "solved" in expected else set()
        if case.rounded:
            unsure |= {"widths", "kept", "sliced", "files"}
        names = [name for name in names if name not in unsure]
    return [
        f"{case.id}: {name} was {expected.get(name)}, is {found.get(name)}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def run_command(*arguments: str) -> None:
    """prunekit's entry point, in this process. Raises RuntimeError with what it said where it fails."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["prunekit", *arguments, "--json"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            prunekit_main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{' '.join(sys.argv)}: {said.getvalue()}") from None
    finally:
        sys.argv = before


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """A folder that goes again, one thread, and a cache that nothing is in: what is kept hides what made it."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        before = os.environ.get("PRUNEKIT_CACHE")
        os.environ["PRUNEKIT_CACHE"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            os.environ.pop("PRUNEKIT_CACHE")
            if before is not None:
                os.environ["PRUNEKIT_CACHE"] = before


def _recorded(part: str) -> dict[str, Any]:
    with _workplace() as folder:
        with contextlib.redirect_stderr(io.StringIO()):
            inputs = save_models(folder) if part == "tiny" else {}
        cases = {}
        for case in PARTS[part]:
            cases[case.id] = record(case, folder, folder)
            print(f"{case.id}: {cases[case.id]['widths']}", flush=True)
    return {"machine": machine(), "inputs": inputs, "cases": cases}


def _check(part: str, expected: Mapping[str, Any]) -> list[str]:
    found = _recorded(part)
    same = found["machine"] == expected["machine"]
    if not same:
        print(f"Written on another kind of machine ({expected['machine']}): solved weights are not compared.")
    wrong = [
        f"{part}: the input {name} differs" for name in expected["inputs"]
        if found["inputs"].get(name) != expected["inputs"][name]
    ]  # fmt: skip
    if set(found["cases"]) != set(expected["cases"]):
        wrong.append(f"{part}: other cases: {', '.join(sorted(set(found['cases']) ^ set(expected['cases'])))}")
    for case in PARTS[part]:
        if case.id in expected["cases"]:
            wrong += differences(case, expected["cases"][case.id], found["cases"][case.id], same)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="only this one")
    parser.add_argument("--values", type=Path, default=VALUES, help="another file than golden.json")
    told = parser.parse_args()
    parts = told.part or [*PARTS]
    values = json.loads(told.values.read_text()) if told.values.is_file() else {}
    if told.action == "write":
        values |= {part: _recorded(part) for part in parts}
        told.values.write_text(json.dumps(values, indent=1) + "\n")
        return
    wrong = [line for part in parts for line in _check(part, values[part])]
    print("\n".join(wrong) or "All as written.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
