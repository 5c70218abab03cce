"""What every command shares: the app, output for people and for machines, errors in one line."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prunekit.cli.launch import begin, end_all, is_quiet, is_silenced
from prunekit.cli.long_command import LogFile, Quiet, Verbose, told_before
from prunekit.errors import PrunekitError
from prunekit.utils.files import leftovers
from prunekit.utils.files.atomic import write_text
from prunekit.utils.names import printable, sentence
from prunekit.utils.phases import telling
from prunekit.utils.phases.run import latest
from prunekit.utils.phases.words import count
from prunekit.utils.process import ranks
from prunekit.utils.process.child import safe_children
from prunekit.utils.process.stopping import Stopped, stoppable, undisturbed
from prunekit.utils.process.waiting import wait_briefly
from prunekit.utils.provenance import installed
from prunekit.utils.terminal import SafeConsole, show_notes

# typer brought click along as a dependency first and as a copy of its own later; either way this is its base error.
_ClickError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
# What the operating system may refuse through no fault of ours. Anything else is a bug and keeps its traceback.
_REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOMEM,
    errno.EIO,
    errno.EMFILE,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)

app = typer.Typer(
    name="prunekit",
    help="Make a pretrained decoder LLM smaller: adaptive structural pruning, rebuilt as an ordinary checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunekit {installed('prunekit') or '(not installed)'}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log: LogFile = None,
) -> None:
    told_before(quiet=quiet, verbose=verbose, log=log)
    begin(context.invoked_subcommand, note)


# What shells answer for a process that Ctrl-C ended.
_STOPPED = 130


def print_json(data: Any) -> None:
    """One JSON object on stdout; NaN and infinity are refused rather than written as invalid JSON."""
    print(json.dumps(data, indent=1, allow_nan=False))  # noqa: T201  (which spells out what is not ASCII)


def deliver(data: Any, output: Path | None, as_json: bool, show: Callable[[], None], overwrite: bool = False) -> None:
    """Write a report where asked to, and print it: as JSON for machines, else by ``show``."""
    # The first words of the file tell a later run that it may be replaced.
    data = {"format": "prunekit-report", **data}
    if output is not None:
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        write_text(output, text, overwrite, what="report")
    if as_json:
        print_json(data)
    else:
        show()


def console() -> Console:
    """Where tables go: stdout. Names of files and models may hold [brackets] and :colons:, which are no markup."""
    return SafeConsole(markup=False, emoji=False, highlight=False)


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A table whose first column is left-aligned and the others right-aligned, as numbers are read."""
    made = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right")
    return made


def fail(message: str, as_json: bool) -> int:
    """Say what went wrong, in one sentence on stderr (and as JSON on stdout where asked), once for all ranks, which
    end. Returns the exit code."""
    message = sentence(message)

    def tell() -> None:
        if as_json:
            print_json({"error": message})
        print(f"prunekit: {message}", file=sys.stderr)  # noqa: T201

    end_all(2, message, tell)
    return 2


def note(text: str) -> None:
    """Say something that a user should know, on stderr; the run goes on."""
    telling.say(text)
    if not is_quiet() and not is_silenced():
        print(f"prunekit: {printable(text)}", file=sys.stderr)  # noqa: T201


def main() -> None:
    """Entry point of the ``prunekit`` command."""
    as_json = "--json" in sys.argv
    wait_briefly()
    _open_streams()
    try:
        # Ctrl-C, and what terminals, schedulers and `docker stop` send: all clean up.
        with stoppable(_say_stopped):
            code = _run(as_json)
    except Stopped as stop:  # between the last command and the end of the block
        _say_stopped(stop.number)
        code = stop.code
    except BaseException as error:  # which Python tells of
        ranks.fail(ranks.ended_by(error), lambda: None)
        raise
    if code:
        end_all(code, ranks.ended_by(None))
        raise SystemExit(code)


def _open_streams() -> None:
    """Let output go nowhere where the caller closed it, and notes to stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for the whole run)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Bars and dashes must not end a run in a traceback where the terminal's encoding lacks them.
        sys.stdout.reconfigure(errors="replace")
    show_notes()


def _run(as_json: bool) -> int:
    """Run the command that the arguments name. Returns the exit code."""
    try:
        # Not standalone, or click would answer bad options by itself: in a box of many lines, and without JSON.
        with safe_children():
            returned = app(prog_name="prunekit", standalone_mode=False)
        code = returned if isinstance(returned, int) else 0
        if code == _STOPPED:
            raise KeyboardInterrupt
        # Here, where it can still be told that nobody reads, or that the disk is full.
        sys.stdout.flush()
    except PrunekitError as error:
        code = fail(str(error), as_json)
    except _ClickError as error:
        code = _usage(error, as_json)
    except BrokenPipeError:
        _drop_output()
        code = 1  # whoever read the output has gone, and is told nothing
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _drop_output()
        where = f" ({error.filename})" if error.filename else ""
        code = fail(f"The system refused{where}: {error.strerror}. Free some space or choose another place.", as_json)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        what = "--batch-size (plan and prune: --set batch_size=...), --length or --max-new-tokens"
        code = fail(f"Not enough memory. Give a smaller {what}, or --dtype bfloat16.", as_json)
    except (KeyboardInterrupt, Stopped, typer.Abort) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        with undisturbed():
            _say_stopped(number)
        code = 128 + number
    return code


def _drop_output() -> None:
    """Let what could not be printed go nowhere, or Python would try again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_stopped(number: int) -> None:
    """Take away what is half-written, and say what is true of it."""
    left = leftovers.remove_all()
    if left:
        words = f"{', '.join(map(str, left))} could not be removed; delete it, or the next run there will"
    else:
        words = "nothing half-written was left behind" + _what_is_kept()
    if left or not is_quiet():
        print(f"prunekit: stopped; {printable(words)}.", file=sys.stderr, flush=True)  # noqa: T201


def _what_is_kept() -> str:
    """What a run that was stopped has kept, and what goes on from there."""
    run = latest()
    if run is None or not run.kept:
        return ""
    kept = " and ".join(f"{what} ({count(done)} of {count(whole)})" for what, (done, whole) in list(run.kept.items()))
    command = shlex.join(["prunekit", *sys.argv[1:]])
    return f"; {kept} were kept, and the same command goes on from there: {command}"


def _is_out_of_memory(error: Exception) -> bool:
    """True also for what PyTorch raises in its place, told by its name: torch itself may not have been imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(sign in str(error) for sign in ("can't allocate memory", "not enough memory", "out of memory"))


def _usage(error: Any, as_json: bool) -> int:
    """An option or argument that click refused, worded like every other error."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    command = context.command_path if context else "prunekit"
    message = " ".join(error.format_message().split()).rstrip(".")
    setting = _as_setting(error)
    if setting is not None:
        return fail(f"{error.option_name} is no option but a setting: say --set {setting}.", as_json)
    return fail(f"{message}; `{command} --help` lists what there is.", as_json)


# Settings that people know under another name.
_OTHER_NAMES = {"allocate": "allocation", "prune": "units", "field": "calib_field"}


def _as_setting(error: Any) -> str | None:
    """``steps=VALUE`` where ``--steps`` was said to a command that takes settings; None where there is none of that."""
    context = getattr(error, "ctx", None)
    takes_settings = context is not None and any(each.name == "settings" for each in context.command.params)
    if not takes_settings or type(error).__name__ != "NoSuchOption":
        return None
    from prunekit.plan.recipe import knobs
    from prunekit.plan.training import recovery_knobs

    # What a training has stands with the commands that train.
    command = "" if context is None else context.info_name
    known = {
        **({} if command == "recover" else knobs()),
        **(recovery_knobs() if command in ("prune", "recover") else {}),
    }
    said = error.option_name.lstrip("-").replace("-", "_")
    name = said.removeprefix("no_")
    name = _OTHER_NAMES.get(name, name)
    if name not in known:
        return None
    if said.startswith("no_"):
        return f"{name}=false"
    return f"{name}=true" if known[name].type is bool else f"{name}=VALUE"
