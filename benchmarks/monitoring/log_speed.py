"""Seconds and peak memory of ``prunekit watch`` on a long log: python benchmarks/monitoring/log_speed.py ROWS FOLDER.

The log is written inside FOLDER (about 280 bytes a row) and deleted afterwards, as is what the watch makes of it.
Processor seconds are told beside the clock's, since a machine may be busy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
_BLOCK = 20_000


def write(path: Path, rows: int) -> None:
    """A log of so many rows: one block of made-up requests again and again."""
    from tests.support.request_logs import rows as made_up

    block = [json.dumps(row) + "\n" for row in made_up(min(rows, _BLOCK))]
    with path.open("w") as handle:
        for begin in range(0, rows, len(block)):
            handle.writelines(block[: rows - begin])


def timed(*arguments: str) -> dict[str, float]:
    """What a command took: clock and processor seconds, peak MiB."""
    began = time.monotonic()
    command = [sys.executable, "-m", "prunekit", *arguments, "-q", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 3), process.returncode
    used = usage.ru_utime + usage.ru_stime
    return {"seconds": time.monotonic() - began, "cpu_seconds": used, "peak_mib": usage.ru_maxrss / 1024}


def main() -> None:
    rows, folder = int(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(ROOT))
    with TemporaryDirectory(prefix="speed-", dir=folder) as made_in:  # so that a second run begins anew
        inside = Path(made_in)
        log, base, watch = inside / "speed.jsonl", inside / "speed.json", inside / "watch"
        # Linux counts the memory of the process that starts a command as that of the command, so this one stays small.
        with ProcessPoolExecutor(1) as pool:
            pool.submit(write, log, rows).result()
        made = {"rows": rows, "bytes": log.stat().st_size}
        asked = ("--requests-per-day", "20000", "-o", str(base), "--overwrite")
        made_init = timed("watch", "init", "--reference", str(log), *asked)
        made_run = timed("watch", "run", str(log), "--baseline", str(base), "--once", "-o", str(watch))
        print(json.dumps({**made, "init": made_init, "run": made_run}, indent=1))


if __name__ == "__main__":
    main()
