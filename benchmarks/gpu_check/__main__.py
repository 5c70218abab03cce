"""Answers about this GPU, most important first: `make gpu-check`, or `python benchmarks/gpu_check [BLOCK ...]`.

Runs from the source tree with any Python that has torch and Triton; whole models need transformers too. Every block
writes a JSON file of its own into benchmarks/results/ as it goes, and ends after --block-seconds; --resume goes on with
what it did not reach. Without a GPU it rehearses on the CPU and measures nothing.

A process of its own does the work, so that a kernel that hangs or kills the GPU's context costs one measurement only:
this one watches it, and starts another that goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ("llama-3.2-1b", "llama-3.1-8b", "smollm2-135m", "qwen2.5-7b")
OLDEST_TRANSFORMERS = (5, 16)
PROBE = """
import json, torch
found = torch.cuda.is_available() and torch.version.hip is None
facts = torch.cuda.get_device_properties(0) if found else None
gpu = [facts.name, [facts.major, facts.minor], facts.multi_processor_count] if found else None
print(json.dumps({"torch": torch.__version__, "gpu": gpu}))
"""


def main() -> int:
    """0 where every check passed (or none was asked for), 1 where one failed or the run could not go on, 2 where
    nothing could be run."""
    load_tree("benchmarks")
    if sys.argv[1:2] == ["--steps"]:
        return steps(sys.argv[2:])
    from benchmarks.gpu_check.blocks import BLOCKS

    arguments = parse(tuple(BLOCKS))
    if arguments.worker:
        return worker(arguments)
    if arguments.warm or arguments.make_cache:
        return warm(arguments)
    load_tree("prunekit")
    if arguments.report:
        from benchmarks.gpu_check.supervisor import summarise

        return summarise(arguments.out, arguments.report)
    probed = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if probed.returncode:
        print(
            f"{sys.executable} can't import torch. Choose a Python with PyTorch and Triton: make gpu-check "
            f"PYTHON=...\n{probed.stderr.strip().splitlines()[-1]}",
            file=sys.stderr,
        )
        return 2
    gpu = json.loads(probed.stdout.splitlines()[-1])["gpu"]
    arguments.rehearse = arguments.rehearse or gpu is None
    if not arguments.rehearse and importlib.util.find_spec("triton") is None:
        print(f"There is a {gpu[0]}, but {sys.executable} has no Triton; pip install triton.", file=sys.stderr)
        return 2
    return supervise(arguments, gpu)


def parse(blocks: tuple[str, ...]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "blocks", nargs="*", metavar="BLOCK", help=f"in this order unless told otherwise: {' '.join(blocks)}"
    )
    parser.add_argument(
        "--block-seconds", type=float, default=90.0, help="begin nothing new in a block after this time"
    )
    parser.add_argument("--budget-seconds", type=float, help="begin nothing new at all after this time")
    parser.add_argument("--resume", metavar="STEM", help="go on with the run whose files are STEM_*.json in --out")
    parser.add_argument(
        "--models", type=_names, default=MODELS[:2], help=f"separated by commas, of {', '.join(MODELS)} (default: two)"
    )
    parser.add_argument("--tokens", type=int, help="decode steps of a run (default: 32)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the torch.compile arms out")
    parser.add_argument("--cache", type=Path, default=ROOT / ".tc", help="folder of compiled kernels (default: .tc)")
    parser.add_argument(
        "--make-cache", action="store_true", help="only compile the kernels of these blocks into --cache; needs no GPU"
    )
    parser.add_argument("--capability", type=_capability, default=(9, 0), help="that of --make-cache (default: 9.0)")
    parser.add_argument("--gpu", default="", help="the GPU's name, where a table of kernels/tables is for it")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny shapes, even where a GPU is")
    parser.add_argument("--out", type=Path, help="folder for results (default: benchmarks/results; a rehearsal's: new)")
    parser.add_argument(
        "--report", metavar="STEM", help="measure nothing: judge and show the files STEM_*.json in --out"
    )
    for hidden in ("--worker", "--warm"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    for hidden in ("--stem", "--date", "--command"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--multiprocessors", type=int, default=132, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.blocks:
        if name not in blocks:
            parser.error(f"there is no block {name!r}; choose of {', '.join(blocks)}")
    if arguments.block_seconds <= 0:
        parser.error(f"--block-seconds {arguments.block_seconds:g} measures nothing; give more than 0")
    arguments.blocks = arguments.blocks or list(blocks)
    if arguments.report or arguments.resume:
        arguments.out = arguments.out or RESULTS
    if arguments.resume and not list(arguments.out.glob(f"{arguments.resume}_*.json")):
        parser.error(f"--resume {arguments.resume}: there are no files {arguments.resume}_*.json in {arguments.out}")
    return arguments


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; choose of {', '.join(MODELS)}")
    return names


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability; give one such as 9.0")
    return int(major), int(minor)


def load_tree(*names: str) -> None:
    """Make this tree's own packages importable, whatever is installed.

    Not through sys.path: with the root on it, transformers would take kernels/ for the package of that name.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, HERE)]
    for name in names:
        # prunekit.kernels lies at the root, where setuptools finds it too.
        places = [str(ROOT / name), *([str(ROOT)] if name == "prunekit" else [])]
        spec = importlib.util.spec_from_file_location(
            name, Path(places[0]) / "__init__.py", submodule_search_locations=places
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def why_no_models() -> str | None:
    """A sentence where transformers is missing or older than prunekit needs."""
    wanted = ".".join(map(str, OLDEST_TRANSFORMERS))
    try:
        if importlib.util.find_spec("transformers") is None:
            raise PackageNotFoundError
        found = version("transformers")
    except PackageNotFoundError:
        return f"Whole models are not measured: that needs transformers {wanted} or newer, and there is none."
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRANSFORMERS:
        return f"Whole models are not measured: that needs transformers {wanted} or newer, and this is {found}."
    return None


def prepare(arguments: argparse.Namespace) -> None:
    """Import the tree in a process that works. Where no block wants whole models, seconds of imports are saved."""
    from benchmarks.gpu_check.blocks import BLOCKS

    arguments.why_no_models = why_no_models()
    if arguments.why_no_models or not any(BLOCKS[name].models for name in arguments.blocks):
        sys.modules["transformers"] = None  # type: ignore[assignment]  # importing it fails, as if it weren't there
    load_tree("prunekit")


def worker(arguments: argparse.Namespace) -> int:
    """Do the work in this process. TRITON_INTERPRET is already as it must be."""
    prepare(arguments)
    import torch

    from benchmarks.gpu_check.work import work
    from prunekit.kernels.ops.utils._triton import INTERPRETING
    from prunekit.kernels.testing.interpreting import quicken

    if INTERPRETING:
        quicken()
    work(arguments, torch.device("cpu" if arguments.rehearse else "cuda"))
    return 0


def steps(arguments: list[str]) -> int:
    """What the block scale runs in a process of its own."""
    load_tree("prunekit")
    from benchmarks.gpu_check.scale_steps import main as measure_steps

    measure_steps(arguments)
    return 0


def warm(arguments: argparse.Namespace) -> int:
    """Compile what the blocks need into the folder of --cache, or see that it is there; CUDA is not touched."""
    prepare(arguments)
    from benchmarks.gpu_check.cache import make_ready

    return make_ready(arguments)


def supervise(arguments: argparse.Namespace, gpu: tuple[str, tuple[int, int], int] | None) -> int:
    """Run workers until all is done or the time is up, then judge and show the results."""
    from benchmarks.common.record import REHEARSAL
    from benchmarks.gpu_check.supervisor import begin_again, run_workers, slug, summarise

    if arguments.rehearse:
        print(REHEARSAL, flush=True)
        if importlib.util.find_spec("triton") is None:
            print("There is no Triton here either: the ops' PyTorch fallbacks stand in for them.", flush=True)
    if arguments.out is None:
        arguments.out = Path(tempfile.mkdtemp(prefix="gpu-check-")) if arguments.rehearse else RESULTS
    arguments.out.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    name = "rehearsal" if arguments.rehearse or gpu is None else slug(gpu[0])
    stem = arguments.resume or f"gpu_check_{name}_{now:%Y-%m-%d_%H%M%S}"
    if arguments.resume and (
        why := begin_again(arguments.out, stem, None if arguments.rehearse or gpu is None else gpu[0])
    ):
        print(why, file=sys.stderr)
        return 2
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE), *sys.argv[1:]]
    options = [
        *("--worker", "--stem", stem, "--out", str(arguments.out), "--date", f"{now:%Y-%m-%dT%H:%M:%SZ}"),
        *("--command", shlex.join(["python", "benchmarks/gpu_check", *sys.argv[1:]])),
    ]
    if arguments.budget_seconds:
        arguments.deadline = time.time() + arguments.budget_seconds
        options += ["--deadline", str(arguments.deadline)]
    if arguments.rehearse or gpu is None:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        options.append("--rehearse")
    else:
        environment["TRITON_CACHE_DIR"] = str(arguments.cache.resolve())
        facts = ["--capability", ".".join(map(str, gpu[1])), "--gpu", gpu[0], "--multiprocessors", str(gpu[2])]
        subprocess.run([*command, "--warm", *facts], env=environment, check=False)
    # Whoever is told to stop still says what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        finished = run_workers([*command, *options], environment, arguments.out, stem, arguments.deadline)
    except KeyboardInterrupt:
        finished = False
    code = summarise(arguments.out, stem)
    return code or (0 if finished else 1)


if __name__ == "__main__":
    sys.exit(main())
