"""What commands tell while they work: on a terminal, in lines, in a log; and what is kept where Ctrl-C ends them."""

from __future__ import annotations

import os
import pty
import re
import signal
import time
from pathlib import Path

import pytest

from prunekit.cli import common
from tests.support.command import DEFAULT, Command, make_command, save_tiny, set_options, start, write_text
from tests.support.tiny import one_thread

BRIEF = set_options(sequences=8, length=16, ffn_multiple=1)
# Every step takes a while, so that there is time to interrupt it.
SLOW = """
import time
from prunekit.utils.phases.run import Run
real = Run.advance
def slowly(self, *args):
    real(self, *args)
    time.sleep(0.04)
Run.advance = slowly
"""
PROMPTS = ("--generate", "--prompts", 2, "--prompt-tokens", 8, "--new-tokens", 4)
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    return make_command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("progress") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 6000)


def pruning(model: Path, text: Path, out: Path) -> tuple[object, ...]:
    words = ("--blocks", "0.8", "--calib", f"{text}:0.5,self:0.5", *BRIEF, "--device", "cpu", "-o", out)
    return ("prune", model, *words, "--check", "none", DEFAULT)


def ended(err: str) -> list[str]:
    """The lines of phases that have ended."""
    return [line for line in re.sub(r"^prunekit: ", "", err, flags=re.MULTILINE).splitlines() if "]" in line]


def test_a_short_run_is_silent_and_a_word_makes_it_talk(
    command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    with one_thread():
        quiet = command(*pruning(model, text, tmp_path / "a"), "--json")
        assert quiet.code == 0 and quiet.err == "", quiet
        told = command(*pruning(model, text, tmp_path / "b"), "--json", "--verbose")
    assert told.code == 0 and {**told.json, "checkpoint": 0} == {**quiet.json, "checkpoint": 0}
    lines = [line for line in ended(told.err) if " begins" not in line]
    assert [re.sub(r": .*", "", line) for line in lines] == [
        "[1/8] reading text",
        "[2/8] own text",
        "[3/8] Fisher information",
        "[4/8] loss curves",
        "[5/8] widths",
        "[6/8] refit",
        "[7/8] rescaling",
        "[8/8] cutting and writing",
    ]
    # The first run has kept them.
    assert "all 8 kept from an earlier run" in lines[1] and "not needed" in lines[2]
    assert "all 4 kept from an earlier run" in lines[3]
    assert f"kept in {tmp_path / 'cache'}" in told.err and "tokens/s" in told.err


@pytest.mark.parametrize("before", [True, False])
def test_options_stand_before_or_after_the_command(before: bool, command: Command, model: Path, tmp_path: Path) -> None:
    words = ("plan", model, "--blocks", "0.8", "--method", "magnitude", "-o", tmp_path / "plan.json")
    log = ("--log", tmp_path / "run.log", "-v")
    done = command(*(*log, *words) if before else (*words, *log))
    assert done.code == 0, done
    rows = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(STAMP, row) for row in rows)
    assert "prunekit " in rows[0] and "magnitude" in rows[0] and "finished after" in rows[-1]
    shown = [line.removeprefix("prunekit: ") for line in done.err.splitlines()]
    assert [re.sub(STAMP, "", row) for row in rows[1:-1]] == shown and len(shown) >= 2


def test_quiet_is_quiet(command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("plan", model, "--blocks", "0.8", "--method", "magnitude", "--set", "steps=9")
    told = command(*words, "-o", tmp_path / "a.json")
    assert "has no effect" in told.err
    quiet = command(*words, "-o", tmp_path / "b.json", "-q", "--log", tmp_path / "log")
    assert quiet.code == 0 and quiet.out == told.out.replace("a.json", "b.json")
    assert "has no effect" not in quiet.err.replace(told.err, "") or quiet.err == told.err
    failed = command("-q", "plan", tmp_path / "nothing", "--blocks", "0.8", "--method", "magnitude")
    assert failed.code == 2 and len(failed.err.splitlines()) == 1
    both = command("plan", model, "--blocks", "0.8", "-q", "-v")
    assert both.code == 2 and "opposite" in both.err
    assert not common.is_silenced()


def test_a_log_that_is_none(command: Command, model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    done = command("plan", model, "--blocks", "0.8", "-o", tmp_path / "plan.json", "--log", notes)
    assert done.code == 2 and "no log that prunekit wrote" in done.err and notes.read_text() == "mine"
    done = command("plan", model, "--blocks", "0.8", "-o", tmp_path / "plan.json", "--log", tmp_path / "no" / "log")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert not (tmp_path / "plan.json").exists()


def test_errors_are_logged(command: Command, tmp_path: Path) -> None:
    command("plan", tmp_path / "nothing", "--blocks", "0.8", "--method", "magnitude", "--log", tmp_path / "log")
    rows = (tmp_path / "log").read_text().splitlines()
    assert "stopped after" in rows[-1] and "nothing" in rows[-2]


@pytest.mark.parametrize("words", [("eval", "--text"), ("bench",), ("analyze", "--calib"), ("export",)])
def test_phases_of_other_commands_are_known(
    words: tuple[str, ...], command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    name = words[0]
    more: dict[str, tuple[object, ...]] = {
        "eval": ("--text", text, "--baseline", model, "--length", 32, *PROMPTS),
        "bench": ("--baseline", model, "--repeats", 2, "--prompt-tokens", 4, "--new-tokens", 2, "--max-minutes", 0),
        "analyze": ("--calib", text, "-o", tmp_path / "a.json", *set_options(sequences=4, length=16)),
        "export": ("--to", "hf", "-o", tmp_path / "out"),
    }
    expected = {"eval": 5, "bench": 4, "analyze": 2, "export": 2}[name]
    with one_thread():
        done = command(name, model, *more[name], "-v")
    assert done.code == 0, done
    lines = [line for line in ended(done.err) if " begins" not in line and re.match(r"\[\d+/\d+\] [^:]+: ", line)]
    assert [line.split("]")[0][1:] for line in lines] == [f"{n}/{expected}" for n in range(1, expected + 1)], done.err


def test_on_a_terminal(model: Path, text: Path, tmp_path: Path) -> None:
    """The line that changes, and one that stays for each phase."""
    leader, follower = pty.openpty()
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    known |= {"PRUNEKIT_CACHE": str(tmp_path / "cache"), "TERM": "xterm", "COLUMNS": "120"}
    process = start(*pruning(model, text, tmp_path / "out"), code=SLOW, env=known, stderr=follower)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        seen += part
    os.close(leader)
    out, _ = process.communicate(timeout=120)
    shown = seen.decode(errors="replace")
    assert process.returncode == 0, shown
    assert "Checkpoint written" in out and "\x1b[" not in out
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"\[4/8\] loss curves [1-3]/4, about \d+ s left", plain)
    stayed = [line for line in plain.replace("\r", "\n").splitlines() if re.match(r"\[\d/8\] [^:]+: ", line)]
    assert [line[1] for line in stayed] == [*"12345678"]


@pytest.mark.parametrize(
    ("until", "kept"),
    [
        (r"\[2/8\] own text 0/8 begins", None),
        (r"\[3/8\] Fisher", "sequences that the model wrote (8 of 8)"),
        (r"\[5/8\] widths begins", "loss curves of layers (4 of 4)"),
        (r"\[6/8\] refit", "loss curves of layers (4 of 4)"),
        (r"\[8/8\] cutting", "loss curves of layers (4 of 4)"),
    ],
)
def test_ctrl_c(until: str, kept: str | None, command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    """A real process, interrupted while it works: what it says is true."""
    out = tmp_path / "out"
    process = start(*pruning(model, text, out), "-v", code=SLOW)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if re.search(until, line):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.wait(60)
    assert process.returncode == 130, (seen, rest)
    last = rest.splitlines()[-1]
    assert last.startswith("prunekit: stopped; nothing half-written was left behind"), rest
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    if kept is None:
        assert last.endswith("behind.")
        return
    assert kept in last and "the same command goes on from there: prunekit prune" in last
    with one_thread():
        again = command(*pruning(model, text, out), "-v", "--json")
    assert again.code == 0, again.err
    assert again.json["checkpoint"] == str(out)
    assert "all 8 kept from an earlier run" in again.err
    if "curves" in kept:
        assert "all 4 kept from an earlier run" in again.err


def test_ctrl_c_between_two_layers(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
        slow = SLOW.replace("0.04", "0.5 if args[0].title == 'loss curves' else 0")
        process = start(*pruning(model, text, tmp_path / "out"), code=slow)
        folder = tmp_path / "cache" / "curves"
        while process.poll() is None and len([*folder.glob("*/layer-*.json")]) < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = re.search(r"loss curves of layers \((\d) of 4\)", err)
    assert found and int(found[1]) in (2, 3), err
    assert len([*folder.glob("*/layer-*.json")]) == int(found[1])
