"""What a command in a child process tells of its phases, inside the phase of the process that waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.utils.phases.relay import VARIABLE, Relay, relay, relayed
from prunekit.utils.phases.run import running
from prunekit.utils.phases.telling import phases
from prunekit.utils.phases.words import line
from prunekit.utils.process.child import run_python
from prunekit.utils.progress import progress
from tests.support.watched_runs import made


def test_a_child_is_a_part_of_the_phase_that_waits() -> None:
    outer, clock = made()
    outer.expect(["pruned", "timed"], None)
    with running(outer), progress("pruned", 1), relayed() as variables:
        inner, ticks = made(Relay(Path(variables[VARIABLE])), memory=2_000_000_000)
        inner.expect(["own text", "loss curves"], None)
        with running(inner):
            with progress("own text", 1) as advance:
                advance()
            with progress("loss curves", 60) as advance:
                ticks.now += 10
                advance(20)
                event = outer.now()
                assert event is not None
                said = "[1/2] pruned (2/2 loss curves 20/60), about 20 s left of this phase, 2.0 GB"
                assert line(event) == said
                assert (event.total, event.done) == (1, 0)
    assert outer.now() is None and not Path(variables[VARIABLE]).parent.exists()
    assert clock.now == 100


def test_what_a_child_says_is_left_tells_how_long_phases_like_it_take() -> None:
    outer, clock = made()
    with running(outer), phases("pruned", "timed", "written"):
        outer.weigh({"pruned": 250.0, "timed": 90.0, "written": 10.0}, ["test", "a child's phases"])
        with progress("pruned", 1) as advance, relayed() as variables:
            inner, ticks = made(Relay(Path(variables[VARIABLE])))
            inner.expect(["loss curves"], None)
            with running(inner), progress("loss curves", 60) as step:
                clock.now += 100
                ticks.now += 100
                step(20)
                # 100 s of 300: 1.2 times what its weight says, and so are the others.
                event = outer.now()
                assert event is not None and event.left == pytest.approx(200)
                assert event.left_in_all == pytest.approx(200 + 1.2 * (90 + 10))
            advance()


@pytest.mark.parametrize("content", ["", "{", '"words"', '{"what": "step"}', '{"unknown": 1}'])
def test_what_can_not_be_read_is_left_out(content: str) -> None:
    run, _ = made()
    with running(run), progress("pruned", 1), relayed() as variables:
        Path(variables[VARIABLE]).write_text(content)
        event = run.now()
    assert event is not None and line(event) == "pruned, 0.0 s so far, 5.0 GB"


def test_outside_a_phase_nothing_is_asked_for() -> None:
    with relayed() as variables:
        assert variables == {}
    run, _ = made()
    with running(run), relayed() as variables:
        assert variables == {}


def test_who_is_not_asked_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert relay() is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "event.json"))
    assert relay() is None


def test_a_command_tells_the_process_that_started_it() -> None:
    with running(made()[0]) as run, progress("listed", 1), relayed() as variables:
        code = (
            "from prunekit.utils.phases.telling import command_run\n"
            "from prunekit.utils.progress import progress\n"
            "with command_run('test', quiet=True, verbose=False, log=None):\n"
            "    with progress('loss curves', 60) as advance:\n"
            "        advance(17)\n"
        )
        ended = run_python(code=code, variables=variables)
        assert ended.ok, ended.err
        event = run.now()
        assert event is not None and event.note == "loss curves 17/60"
