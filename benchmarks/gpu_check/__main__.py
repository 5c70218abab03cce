"""Are the kernels right on this GPU, and how fast are they? `make gpu-check`, or `python benchmarks/gpu_check`.

Runs from the source tree with any Python that has torch and Triton; whole models need transformers too. Writes a JSON
file a part and a table into benchmarks/results/. Without a GPU it rehearses on the CPU and measures nothing.

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
name = torch.cuda.get_device_name() if found else None
print(json.dumps({"torch": torch.__version__, "gpu": name}))
"""


def main() -> int:
    """0 where every check passed (or none was asked for), 1 where one failed, 2 where nothing could be run."""
    arguments = parse()
    if arguments.worker:
        return worker(arguments)
    load_tree("benchmarks", "prunekit")
    if arguments.report:
        return report(arguments.out, arguments.report)
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
        print(f"There is a {gpu}, but {sys.executable} has no Triton; pip install triton.", file=sys.stderr)
        return 2
    return supervise(arguments, gpu)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("all", "correctness", "ops", "models"), default="all")
    parser.add_argument("--models", type=_names, default=MODELS, help=f"separated by commas, of {', '.join(MODELS)}")
    parser.add_argument(
        "--shares", type=_shares, default=(40, 20, 60), help="%% of the blocks that plans remove (default: 40,20,60)"
    )
    parser.add_argument("--budget-seconds", type=float, help="begin nothing new after this time")
    parser.add_argument("--tokens", type=int, help="decode steps of a run (default: 32)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the torch.compile arms out")
    parser.add_argument(
        "--after",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="repeatable: leave out what passed in this *_correctness.json (same kernels, same kind of GPU)",
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny shapes, even where a GPU is")
    parser.add_argument("--out", type=Path, help="folder for results (default: benchmarks/results; a rehearsal's: new)")
    parser.add_argument(
        "--report", metavar="STEM", help="measure nothing: judge and show the files STEM_*.json in --out"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    for hidden in ("--stem", "--date", "--command"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for file in arguments.after:
        if not file.is_file():
            parser.error(f"--after {file}: there is no such file.")
    arguments.out = arguments.out or (None if not arguments.report else RESULTS)
    return arguments


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; choose of {', '.join(MODELS)}")
    return names


def _shares(text: str) -> tuple[int, ...]:
    try:
        shares = tuple(int(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(1 <= share <= 90 for share in shares):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 to 90, such as 20,40,60")
    return shares


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


def worker(arguments: argparse.Namespace) -> int:
    """Do the work in this process. TRITON_INTERPRET is already as it must be."""
    arguments.why_no_models = why_no_models()
    if arguments.why_no_models:
        sys.modules["transformers"] = None  # type: ignore[assignment]  # importing it fails, as if it weren't there
    load_tree("benchmarks", "prunekit")
    import torch

    from benchmarks.gpu_check.parts import work

    work(arguments, torch.device("cpu" if arguments.rehearse else "cuda"))
    return 0


def supervise(arguments: argparse.Namespace, gpu: str | None) -> int:
    """Run workers until all is done or the time is up, then judge and show the results."""
    from benchmarks.gpu_check.supervisor import run_workers, slug

    if arguments.rehearse:
        from benchmarks.gpu_check.supervisor import REHEARSAL

        print(REHEARSAL, flush=True)
        if importlib.util.find_spec("triton") is None:
            print("There is no Triton here either: the ops' PyTorch fallbacks stand in for them.", flush=True)
    if arguments.out is None:
        arguments.out = Path(tempfile.mkdtemp(prefix="gpu-check-")) if arguments.rehearse else RESULTS
    arguments.out.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    name = "rehearsal" if arguments.rehearse else slug(gpu or "")
    stem = f"gpu_check_{name}_{now:%Y-%m-%d_%H%M%S}"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    options = [
        *sys.argv[1:],
        *("--worker", "--stem", stem, "--out", str(arguments.out), "--date", f"{now:%Y-%m-%dT%H:%M:%SZ}"),
        *("--command", shlex.join(["python", "benchmarks/gpu_check", *sys.argv[1:]])),
    ]
    if arguments.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        options.append("--rehearse")
    if arguments.budget_seconds:
        arguments.deadline = time.time() + arguments.budget_seconds
        options += ["--deadline", str(arguments.deadline)]
    command = [sys.executable, str(Path(__file__).resolve()), *options]
    # Whoever is told to stop still says what there is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        finished = run_workers(command, environment, arguments.out, stem, arguments.deadline)
    except KeyboardInterrupt:
        finished = False
    code = report(arguments.out, stem)
    return code or (0 if finished else 1)


def report(folder: Path, stem: str) -> int:
    """Judge a run by its files, write the goals and the table next to them, and show the table."""
    from benchmarks.gpu_check.supervisor import summarise

    return summarise(folder, stem)


if __name__ == "__main__":
    sys.exit(main())
