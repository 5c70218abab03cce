"""Spoil inputs until the time is over: ``python tests/fuzz/fuzz_run.py --minutes 60`` (``make fuzz``).

Every input is made from the seed and its number alone; ``--only`` makes one again. Those on which something was wrong
are kept in a folder each, with what was run and said.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

for _name, _value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("HF_HUB_OFFLINE", "1")):
    os.environ.setdefault(_name, _value)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fuzz_corpus import KINDS, Kind, filled, make_corpus  # noqa: E402  (after the environment)
from fuzz_mutations import spoil  # noqa: E402
from fuzz_sandbox import Outcome, run  # noqa: E402


@dataclass
class Counts:
    """``inputs`` by kind, exit ``codes``, and the folders of ``failures`` by what was wrong."""

    inputs: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    failures: dict[str, list[str]] = field(default_factory=dict)


def fuzz(
    seed: int,
    keep: Path,
    *,
    seconds: float = float("inf"),
    inputs: int = 1 << 60,
    only: int | None = None,
    kinds: tuple[str, ...] = (),
) -> Counts:
    """Spoil inputs for ``seconds``, or so many of them; failures are kept below ``keep``."""
    import torch

    torch.set_num_threads(1)
    end = time.monotonic() + seconds
    counts = Counts()
    chosen = [kind for kind in KINDS if not kinds or kind.name in kinds]
    before = os.environ.get("PRUNEKIT_CACHE")
    with tempfile.TemporaryDirectory(prefix="prunekit-fuzz-") as place:
        corpus = Path(place, "corpus")
        corpus.mkdir()
        make_corpus(corpus)
        try:
            for number in range(inputs) if only is None else (only,):
                # One of every kind at least, however slow the machine.
                if time.monotonic() > end and number >= len(chosen):
                    break
                kind = chosen[number % len(chosen)]
                work = Path(place, "work")
                work.mkdir()
                outcome, said = _one(random.Random(f"{seed}:{number}:{kind.name}"), kind, corpus, work)
                counts.inputs[kind.name] += 1
                counts.codes[outcome.code] += 1
                if outcome.wrong:
                    folder = _keep(keep, f"{seed}-{number}", work, outcome, said, seed, number, kinds)
                    counts.failures.setdefault(f"{kind.name}: {', '.join(outcome.wrong)}", []).append(str(folder))
                shutil.rmtree(work)
                if number % 200 == 199:
                    wrong = sum(map(len, counts.failures.values()))
                    print(f"{number + 1} inputs, {wrong} of them wrong", file=sys.stderr, flush=True)
        finally:
            if before is None:
                os.environ.pop("PRUNEKIT_CACHE", None)
            else:
                os.environ["PRUNEKIT_CACHE"] = before
    return counts


def _one(rng: random.Random, kind: Kind, corpus: Path, work: Path) -> tuple[Outcome, list[str]]:
    here, logs = work / "here", work / "logs"
    here.mkdir()
    logs.mkdir()
    for name in kind.needs:
        copy = shutil.copytree if (corpus / name).is_dir() else shutil.copyfile
        copy(corpus / name, here / name)
    files = sorted(file for pattern in kind.files for file in here.glob(pattern))
    done = ""
    if files:
        file = rng.choice(files)
        done = f"{file.relative_to(here)}: {spoil(rng, file)}"
    arguments = filled(rng.choice(kind.commands), here)
    os.environ["PRUNEKIT_CACHE"] = str(here / "cache")
    return run(arguments, here, logs), [done, *arguments]


def _keep(
    keep: Path, name: str, work: Path, outcome: Outcome, said: list[str], seed: int, number: int, kinds: tuple[str, ...]
) -> Path:
    folder = keep / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work / "here", folder / "here", symlinks=True, dirs_exist_ok=True, ignore=_pipes)
    again = f"python tests/fuzz/fuzz_run.py --seed {seed} --only {number}" + "".join(
        f" --kind '{each}'" for each in kinds
    )
    about = {"wrong": outcome.wrong, "spoiled": said[0], "command": said[1:], "code": outcome.code, "again": again}
    (folder / "about.json").write_text(json.dumps(about, indent=1))
    (folder / "out").write_text(outcome.out)
    (folder / "err").write_text(outcome.err)
    return folder


def _pipes(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=60.0)
    options.add_argument("--inputs", type=int, default=1 << 60)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    options.add_argument("--only", type=int, help="make the input of this number again, and no other")
    options.add_argument("--kind", action="append", default=[], choices=[kind.name for kind in KINDS])
    options.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    given = options.parse_args()
    print(f"seed {given.seed}", flush=True)
    counts = fuzz(
        given.seed,
        given.keep,
        seconds=60 * given.minutes,
        inputs=given.inputs,
        only=given.only,
        kinds=tuple(given.kind),
    )
    for name, number in sorted(counts.inputs.items()):
        print(f"{number:6} {name}")
    print(f"{sum(counts.inputs.values()):6} inputs; exit codes {dict(counts.codes)}")
    for what, folders in sorted(counts.failures.items()):
        print(f"{len(folders)} times {what}, as in {folders[0]}")
    if counts.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
