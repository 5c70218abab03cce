"""What pruning brings in every runtime: `prunekit bench` in each of them, one after the other, as one JSON and a table.

    prunekit prune smollm2-135m --blocks 0.79 -o smaller/
    python benchmarks/runtimes.py smaller/ --baseline smollm2-135m --output benchmarks/results/runtimes_cpu.json

Exports are kept in --exports, so that a run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prunekit.utils.process.child import environment, python_command

ARMS = (
    ("torch", "float32"),
    ("onnx", "fp32"),
    ("onnx-genai", "fp32"),
    ("onnx-genai", "int4"),
    ("gguf", "f16"),
    ("gguf", "q8_0"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", help="the pruned checkpoint")
    parser.add_argument("--baseline", default="smollm2-135m", help="the model it was pruned from")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--exports", type=Path, default=Path("exports"), help="folder to keep exports in")
    parser.add_argument("--only", action="append", metavar="RUNTIME", help="repeatable: only these runtimes")
    parser.add_argument("--output", type=Path, help="write the reports here as JSON")
    options = parser.parse_args()
    shared = ["--prompt-tokens", str(options.prompt_tokens), "--new-tokens", str(options.new_tokens)]
    shared += ["--repeats", str(options.repeats)]
    reports = []
    for runtime, dtype in ARMS:
        if options.only and runtime not in options.only:
            continue
        arguments = ["--baseline", options.baseline, "--runtime", runtime, "--dtype", dtype, *shared]
        kept = [] if runtime == "torch" else ["--keep-exports", str(options.exports)]
        print(f"{runtime} {dtype} …", file=sys.stderr, flush=True)
        report = _bench([options.pruned, *arguments, *kept])
        # Folders are of this machine and say nothing to others.
        reports.append({"command": "prunekit bench smaller/ " + " ".join(arguments), **report})
        if options.output:
            text = json.dumps({"format": "prunekit-runtimes", "reports": reports}, indent=1)
            options.output.write_text(text + "\n", encoding="utf-8")
    print(table(reports))


def _bench(arguments: list[str]) -> Any:
    command = python_command(module="prunekit", arguments=["bench", *arguments, "--json"])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=False)
    if done.returncode:
        sys.exit(f"prunekit bench {' '.join(arguments)} failed")
    return json.loads(done.stdout[done.stdout.index("{") :])


def table(reports: list[Any]) -> str:
    """Markdown: dense → pruned, and the ratio beside the ideal one. Speed-ups are medians of neighbouring runs."""
    lines = [
        "| runtime | files, MiB | peak memory, MiB | prefill, tokens/s | speed-up (ideal) | decode, tokens/s | "
        "speed-up (ideal) |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        dense, pruned, (made,) = report["dense"], report["pruned"], report["results"]
        prompt = report["config"]["prompt"]

        def pair(name: str, dense: Any = dense, pruned: Any = pruned) -> str:
            values = [each[name] for each in (dense, pruned)]
            return " → ".join("?" if value is None else f"{value / 2**20:,.0f}" for value in values)

        cells = [f"{report['runtime']} {report['dtype']}", pair("file_bytes"), pair("peak_bytes")]
        for name, tokens in (("ttft", prompt), ("tpot", 1)):
            timed = made[name]
            cells.append(" → ".join(f"{tokens / timed[each]['median']:,.1f}" for each in ("dense", "pruned")))
            ratio = timed["ratio"]
            cells.append(
                f"{1 / ratio['median']:.2f} ({1 / ratio['p80']:.2f} to {1 / ratio['p20']:.2f}; "
                f"{1 / timed['ideal_ratio']:.2f})"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
