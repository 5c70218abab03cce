"""What pruning brings in vLLM. From the root of the repository, with the Python that has vLLM:

    python -m benchmarks.server offline -o offline.json                     # Llama-3.1-8B from config.json alone
    python -m benchmarks.server sweep -o sweep.json --rates 1 4 16 inf
    python -m benchmarks.server offline -o own.json --load-format auto --folder dense=DENSE pruned=SMALLER \\
        pruned@transformers=SMALLER

``offline`` times vLLM's engine alone at several batch sizes, ``sweep`` puts requests on its server at several rates.
Each model runs in a process of its own, in turns, and what is measured is written at once; the same command goes on
where it was cut short. Without a GPU, give --kv-bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    from benchmarks.models.shapes import MODELS
    from benchmarks.server.arms import ARMS, TRANSFORMERS
    from benchmarks.server.engine import MODES
    from benchmarks.server.run import KINDS, Settings

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Settings()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON to write, and to go on from")
    parser.add_argument("--model", choices=[*MODELS, "tiny"], default="llama-3.1-8b")
    parser.add_argument(
        "--percent", type=int, default=40, help="share of the blocks that is gone (default: %(default)s)"
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(ARMS),
        help=f"of {', '.join(ARMS)}, each also with {TRANSFORMERS} behind it, for vLLM's Transformers backend",
    )
    parser.add_argument(
        "--folder", nargs="+", metavar="NAME=FOLDER", help="checkpoints to run instead; the first is dense"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=list(default.batches))
    parser.add_argument("--prompts", type=int, nargs="+", default=list(default.prompts), help="lengths in tokens")
    parser.add_argument("--new", type=int, default=default.new, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--rates", type=float, nargs="+", default=list(default.rates), help="requests a second, or inf")
    parser.add_argument("--requests", type=int, default=default.requests, help="at each rate (default: %(default)s)")
    parser.add_argument(
        "--mode", choices=MODES, default=default.mode, help="CUDA graphs without a compiler, vLLM's default, or neither"
    )
    parser.add_argument("--dtype", default=default.dtype)
    parser.add_argument(
        "--load-format", default=default.load_format, help="dummy: random weights; auto: those of --folder"
    )
    parser.add_argument("--kv-bytes", type=int, help="of the KV cache; a CPU needs it")
    parser.add_argument(
        "--memory-share", type=float, default=default.memory_share, help="of the GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--limit-s", type=float, default=default.limit_s, help="for each process (default: %(default)s)"
    )
    parser.add_argument("--budget-s", type=float, help="begin nothing new after these seconds")
    parser.add_argument("--once", action="store_true", help="each model once instead of twice in turns")
    return parser.parse_args(arguments)


def main() -> int:
    """0 where every run gave its numbers, 1 where one didn't."""
    given = parse()
    from benchmarks.models.shapes import MODELS, TINY
    from benchmarks.server.arms import TRANSFORMERS, arm_shapes, stored_arm, write_arm
    from benchmarks.server.run import Settings, measure
    from benchmarks.server.tables import table

    values = {field.name: getattr(given, field.name) for field in dataclasses.fields(Settings)}
    settings = Settings(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})
    with tempfile.TemporaryDirectory() as folder:
        if given.folder:
            arms = [
                stored_arm(name, Path(path).resolve())
                for name, _, path in (each.partition("=") for each in given.folder)
            ]
        else:
            model = TINY if given.model == "tiny" else MODELS[given.model]
            shapes = arm_shapes(model.shape, given.percent)
            unknown = {name.removesuffix(TRANSFORMERS) for name in given.arms} - set(shapes)
            if unknown:
                sys.exit(f"There is no arm {', '.join(sorted(unknown))}; choose of {', '.join(shapes)}.")
            arms = [
                write_arm(model, name, shapes[name.removesuffix(TRANSFORMERS)], Path(folder) / name)
                for name in given.arms
            ]
        report = measure(
            given.kind,
            arms,
            settings,
            given.output,
            budget_s=given.budget_s,
            twice=not given.once,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(table(report))
    return int(any("problem" in run for run in report["runs"]))


if __name__ == "__main__":
    raise SystemExit(main())
