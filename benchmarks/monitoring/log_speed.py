"""Seconds and peak memory of ``prunekit watch`` on a long log: python -m benchmarks.monitoring.log_speed ROWS FOLDER.

The log is written inside FOLDER (about 280 bytes a row) and deleted afterwards, as is what the watch makes of it.
Processor seconds are told beside the clock's, since a machine may be busy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common.spent import run_measured
from tests.support.request_logs import rows as made_up

_BLOCK = 20_000


def write(path: Path, rows: int) -> None:
    """A log of so many rows: one block of made-up requests again and again."""
    block = [json.dumps(row) + "\n" for row in made_up(min(rows, _BLOCK))]
    with path.open("w") as handle:
        for begin in range(0, rows, len(block)):
            handle.writelines(block[: rows - begin])


def timed(*arguments: str) -> dict[str, float]:
    """What a command took: clock and processor seconds, peak MiB."""
    command = [sys.executable, "-m", "prunekit", *arguments, "-q", "--json"]
    code, spent = run_measured(command, out=subprocess.DEVNULL)
    assert code in (0, 3), code
    return {"seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds, "peak_mib": spent.peak_bytes / 2**20}


def main() -> None:
    rows, folder = int(sys.argv[1]), Path(sys.argv[2])
    with TemporaryDirectory(prefix="speed-", dir=folder) as made_in:  # so that a second run begins anew
        inside = Path(made_in)
        log, base, watch = inside / "speed.jsonl", inside / "speed.json", inside / "watch"
        write(log, rows)
        made = {"rows": rows, "bytes": log.stat().st_size}
        asked = ("--requests-per-day", "20000", "-o", str(base), "--overwrite")
        made_init = timed("watch", "init", "--reference", str(log), *asked)
        made_run = timed("watch", "run", str(log), "--baseline", str(base), "--once", "-o", str(watch))
        print(json.dumps({**made, "init": made_init, "run": made_run}, indent=1))


if __name__ == "__main__":
    main()
