"""Kills a job at its every change of a file or folder, and checks what is left. Run with killer.c's library preloaded.

    LD_PRELOAD=killer.so python server.py WORK JOB,JOB SECONDS

A job is run in forked processes, so that nothing is imported twice. First what lies there is copied before its every
change: at each the output's name bears nothing, the old or the new result, complete, and what the job keeps beside it
is sound. Then it is killed at each, or at as many as SECONDS allow, and the next run gives the new result, bit for bit,
and leaves nothing else. Prints one JSON object.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

KILLER = ctypes.CDLL(None)
Tree = dict[str, str]


def tree(path: Path) -> Tree | None:
    """The digests of a file, or of all in a folder; None where there is nothing."""
    if path.is_file():
        return {"": hashlib.sha256(path.read_bytes()).hexdigest()}
    if not path.is_dir():
        return None
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() if each.is_file() else "folder"
        for each in path.rglob("*")
    }


def forked(
    work: Callable[[], None], kill_at: int | None, log: Path, watch: tuple[Path, Path] | None = None
) -> tuple[int, int]:
    """Run ``work`` in a fork. Returns its exit status (as os.waitpid's, negative for a signal) and what it counted."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if watch is not None:
                KILLER.kill_watch(*(os.fsencode(each) for each in watch))
            if kill_at is not None:
                KILLER.kill_arm(ctypes.c_long(kill_at))
            ended: list[int] = []

            def alone() -> None:
                try:
                    work()
                    ended.append(0)
                except SystemExit as stop:
                    ended.append(int(stop.code or 0))

            # A thread's calls begin with itself: a traced program holds the lines that called for it.
            thread = threading.Thread(target=alone)
            thread.start()
            thread.join()
            code = ended[0] if ended else 1
            counted = KILLER.kill_count()
            KILLER.kill_arm(ctypes.c_long(-1))
            os.write(writing, str(counted).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(said or 0)


class Bench:
    """One job in the folder ``work``: ``run(output)`` writes ``output``; ``old(output)`` what is there before;
    ``beside(folder)`` says what is wrong beside it."""

    def __init__(
        self,
        work: Path,
        name: str,
        run: Callable[[Path], None],
        old: Callable[[Path], None] | None,
        beside: Callable[[Path], list[str]],
    ):
        self.place, self.kept, self.log = work / "place", work / "kept", work / "log"
        self.out = self.place / name
        self.run, self.old, self.beside = run, old, beside
        shutil.rmtree(self.kept, ignore_errors=True)
        self.kept.mkdir(parents=True)
        if old is not None:
            old(self.kept / name)

    def fresh(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.kept, self.place)

    def once(self, kill_at: int | None, copies: Path | None = None) -> tuple[int, int]:
        return forked(lambda: self.run(self.out), kill_at, self.log, copies and (self.place, copies))

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-600:]

    def all(self, seconds: float) -> dict[str, object]:
        self.fresh()
        before = tree(self.out)
        copies = self.place.parent / "copies"
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        code, points = self.once(0, copies)
        assert code == 0, self.said()
        new = tree(self.out)
        assert new is not None and sorted(os.listdir(self.place)) == [self.out.name], os.listdir(self.place)
        self.fresh()
        begun = time.monotonic()
        code, _ = self.once(None)
        assert code == 0, self.said()
        again = tree(self.out) or {}
        assert again == new, f"two runs differ in {[name for name in new if again.get(name) != new[name]]}"
        # A kill takes as long as two runs.
        every = max(1, round(2 * points * (time.monotonic() - begun) / seconds))
        wrong: list[str] = []
        assert len(os.listdir(copies)) == points
        for point in range(1, points + 1):
            if tree(copies / str(point) / self.out.name) not in (before, new):
                wrong.append(f"before {point}: the name bears neither the old nor the new")
            wrong += [f"before {point}: {each}" for each in self.beside(copies / str(point))]
        shutil.rmtree(copies)
        kills = swept = 0
        for point in range(1, points + 1, every):
            self.fresh()
            code, counted = self.once(point)
            if code == 0 and counted < point:
                # Libraries that work in threads need not write as often in every run.
                continue
            if code != -signal.SIGKILL:
                wrong.append(f"{point}: ended with {code} and was not killed")
                continue
            kills += 1
            now = tree(self.out)
            if now not in (before, new):
                wrong.append(f"{point}: the name bears neither the old nor the new")
            wrong += [f"{point}: {each}" for each in self.beside(self.place)]
            rest = len(os.listdir(self.place)) > (now is not None)
            code, _ = self.once(None)
            # Where it is complete already, the next run says that the name is taken.
            wanted = 2 if self.old is None and now is not None else 0
            if code != wanted:
                wrong.append(f"{point}: the next run ended with {code}: {self.said()}")
            if tree(self.out) != new:
                wrong.append(f"{point}: the next run gave something else")
            if os.listdir(self.place) != [self.out.name]:
                wrong.append(f"{point}: after the next run there is {os.listdir(self.place)}")
            elif rest:
                swept += 1
        return {"points": points, "every": every, "kills": kills, "swept": swept, "wrong": wrong[:20]}


def main() -> None:
    from jobs import JOBS, Job, prepare

    work, names, seconds = Path(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3])
    made = prepare(work)
    results = {}
    for name in names:
        job: Job = JOBS[name](made)
        for way, old in (("new", None), ("overwrite", job.old)):
            begun = time.monotonic()
            flags = () if old is None else ("--overwrite",)
            bench = Bench(work / f"{name}-{way}", job.output, partial(job.run, flags=flags), old, job.beside)
            result = bench.all(seconds)
            results[f"{name}, {way}"] = {**result, "seconds": round(time.monotonic() - begun, 1)}
            print(name, way, results[f"{name}, {way}"], file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
