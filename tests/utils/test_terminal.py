"""Names and texts of strangers on a terminal, in tables and in errors: shown, never obeyed."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.table import Table

from prunekit.cli import common
from prunekit.utils.names import printable, readable, sentence
from prunekit.utils.provenance import model_label
from prunekit.utils.terminal import SafeConsole, show_notes
from tests.support.command import Command

EVIL = "a\x1b[2J\x1b]0;owned\x07b\r\nc\u202ed\x9be\u2028f\ud800g"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07b\r\nc\u202ed\x9be\u2028f\ud800g"


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("é 文 🙂 👨‍👩‍👧 [b] :x:") == "é 文 🙂 👨‍👩‍👧 [b] :x:"
    assert readable("one\r\n\ttwo\x1b[31m\rthree \u200fשלום") == "one\n\ttwo\\x1b[31m\\rthree \u200fשלום"
    long = sentence("x" * 5000 + ". End.")
    assert len(long) < 2100 and long.endswith(". End.") and " … " in long


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_and_lines(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = SafeConsole(file=io.StringIO(), force_terminal=terminal, width=200, markup=False, highlight=False)
    made: Table = common.table(EVIL, EVIL, "b", caption=EVIL)
    made.add_row(EVIL, "1")
    out.print(made)
    out.print(f"Written to {EVIL}.")
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(SHOWN) == 5
    assert not {"\x07", "\r", "\u202e", "\x9b", "\u2028"} & set(text) and "\x1b[2J" not in text and "\x1b]0" not in text


def test_errors_of_the_command(command: Command, tmp_path: Path) -> None:
    ended = command("inspect", tmp_path / "no\x1b[31m\nname")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1 and r"no\x1b[31m\nname" in ended.err
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"format": "prunekit-plan", "version": "\x1b]0;x\x07" + "y" * 9000}))
    ended = command("prune", tmp_path, "-o", tmp_path / "out", "--plan", plan)
    assert ended.code == 2 and "\x1b" not in ended.err and len(ended.err) < 3000


def test_notes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    show_notes()
    show_notes()
    # Libraries that other tests import show what is logged, too.
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    logging.getLogger("prunekit").warning("skipped in %s", EVIL)
    assert capsys.readouterr().err == f"skipped in {SHOWN}\n"
    assert caplog.messages[-1] == f"skipped in {SHOWN}"


def test_labels_that_travel_hold_no_escapes(tmp_path: Path) -> None:
    folder = tmp_path / "m\x1b[31m"
    folder.mkdir()
    assert model_label(str(folder)) == r"m\x1b[31m"
