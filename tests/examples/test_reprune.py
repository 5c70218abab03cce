"""The scripts that prune again, promote and go back, with a stand-in for prunekit that says what it was asked."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.monitoring.running.rotation import _siblings
from tests.support.command import ROOT

OPERATE = ROOT / "examples" / "operate"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("flock") is None, reason="the scripts need flock and GNU's mv"
)

PRUNEKIT = """#!/bin/sh
printf '%s|' "$@" >> "$LOG"
echo >> "$LOG"
step=$1
for out; do :; done
case $step in
prune | recover | export) mkdir "$out" && echo weights > "$out/model.safetensors" ;;
accept) mkdir "$out" && echo '{}' > "$out/accept.json" ;;
esac
eval "exit \\${EXIT_$step:-0}"
"""


class Place:
    """A folder of releases, and the scripts run on it."""

    def __init__(self, folder: Path):
        self.releases = folder / "re leases"
        self.releases.mkdir()
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        program = self.bin / "prunekit"
        program.write_text(PRUNEKIT)
        program.chmod(0o755)

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "MODEL": "dense model",
            "TEXT": "recent.jsonl",
            "RECORDS": "records.jsonl",
            "POLICY": "policy.toml",
            "RELEASES": str(self.releases),
            **variables,
        }
        return subprocess.run(
            ["sh", str(OPERATE / script), *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    def release(self, name: str) -> None:
        (self.releases / name).mkdir()

    def link(self, name: str) -> str | None:
        path = self.releases / name
        return os.readlink(path) if path.is_symlink() else None

    def names(self) -> set[str]:
        return {path.name for path in self.releases.iterdir()} - {".lock"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_accepted_is_promoted(place: Place) -> None:
    done = place.run("reprune.sh", TARGET="gguf")
    assert done.returncode == 0, done.stderr
    name = place.link("current")
    assert name and place.names() == {"current", name} and place.link("previous") is None
    assert {path.name for path in (place.releases / name).iterdir()} == {"checkpoint", "export", "accept"}
    prune, export, accept = (line.split("|")[:-1] for line in place.log.read_text().splitlines())
    work = prune[-1].removesuffix("/checkpoint")
    assert prune[:-2] == ["prune", "dense model", "--params", "0.8", "--calib", "recent.jsonl:0.5,builtin:0.5"]
    assert export == ["export", f"{work}/checkpoint", "--to", "gguf", "-o", f"{work}/export"]
    # What is served is asked, not what it was made from.
    assert accept[:4] == ["accept", f"{work}/export", "--baseline", "dense model"]
    assert accept[4:8] == ["--records", "records.jsonl", "--policy", "policy.toml"]
    assert accept[8:] == ["--server", "auto", "-o", f"{work}/accept"]
    assert f"-o {place.releases}/current/base.json" in done.stderr


@pytest.mark.parametrize(
    ("target", "asked", "said"),
    [
        ("", "checkpoint", ""),
        ("hf", "export", ""),
        ("vllm", "export", ""),
        ("onnx", "checkpoint", "prunekit accept can't open an export for onnx"),
    ],
)
def test_what_is_accepted_is_what_is_served(place: Place, target: str, asked: str, said: str) -> None:
    done = place.run("reprune.sh", TARGET=target, DTYPE="fp16", BASELINE="dense.gguf")
    assert done.returncode == 0 and said in done.stderr
    *_, accept = (line.split("|")[:-1] for line in place.log.read_text().splitlines())
    assert Path(accept[1]).name == asked and accept[2:4] == ["--baseline", "dense.gguf"]
    assert "--server" not in accept
    if target:
        assert "|--dtype|fp16|" in place.log.read_text()


def test_what_was_pruned_may_be_trained_before_it_is_judged(place: Place) -> None:
    done = place.run("reprune.sh", TRAIN="1M", OLD="old.jsonl")
    assert done.returncode == 0, done.stderr
    pruned, trained, judged = (line.split("|")[:-1] for line in place.log.read_text().splitlines()[:3])
    mix = "recent.jsonl:0.5,old.jsonl:0.5"
    assert pruned[0] == "prune" and pruned[pruned.index("--calib") + 1] == mix
    assert trained[:4] == ["recover", pruned[-1], "--teacher", "dense model"]
    assert trained[4:-2] == ["--text", mix, "--tokens", "1M"] and judged[:2] == ["accept", trained[-1]]
    release = place.releases / str(place.link("current"))
    assert (release / "checkpoint").is_dir() and not (release / "pruned").exists()
    assert place.run("reprune.sh", TRAIN="1M", EXIT_recover="2").returncode == 2
    assert place.link("current") == release.name


def test_each_release_has_a_log_of_its_own(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "re quests.jsonl"
    log.write_text('{"id": "of the first"}\n')
    for name in ("one", "two"):
        place.release(name)
    failed = place.run("release.sh", "promote", "one", REQUEST_LOG=str(log), RELOAD="false")
    assert failed.returncode == 1 and log.exists()
    (place.releases / "current").unlink()
    assert place.run("release.sh", "promote", "two", REQUEST_LOG=str(log), RELOAD="true").returncode == 0
    (aside,) = tmp_path.glob("until-*-re quests.jsonl")
    assert not log.exists() and "of the first" in aside.read_text()
    # Not read as the older part of the new one.
    assert _siblings(log) == []
    # Nothing to move yet.
    assert place.run("release.sh", "promote", "one", REQUEST_LOG=str(log)).returncode == 0


def test_what_is_refused_changes_nothing(place: Place) -> None:
    place.release("20260101T000000Z")
    assert place.run("release.sh", "promote", "20260101T000000Z").returncode == 0
    done = place.run("reprune.sh", EXIT_accept="3")
    assert done.returncode == 3 and "refused" in done.stderr
    assert place.names() == {"20260101T000000Z", "current", "refused"} and place.link("current") == "20260101T000000Z"
    assert (place.releases / "refused" / "accept.json").is_file()


@pytest.mark.parametrize(("step", "code"), [("prune", 2), ("export", 2), ("accept", 2), ("prune", 1)])
def test_a_step_that_fails_leaves_nothing(place: Place, step: str, code: int) -> None:
    done = place.run("reprune.sh", TARGET="onnx", **{f"EXIT_{step}": str(code)})
    assert done.returncode == code and place.names() <= {"refused"}


def test_what_a_killed_run_left_goes(place: Place) -> None:
    place.release(".making-20260101T000000Z")
    assert place.run("reprune.sh").returncode == 0
    assert not any(name.startswith(".making") for name in place.names())


def test_two_runs_do_not_meet(place: Place) -> None:
    with (place.releases / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = place.run("reprune.sh")
    assert done.returncode == 75 and "another run" in done.stderr and not place.log.exists()


def test_only_so_many_are_kept(place: Place) -> None:
    for year in range(2020, 2026):
        place.release(f"{year}0101T000000Z")
    place.release("notes")
    for name in ("20200101T000000Z", "20210101T000000Z"):
        assert place.run("release.sh", "promote", name).returncode == 0
    assert place.run("reprune.sh", KEEP="1").returncode == 0
    # The oldest was current before; the newest of the others is kept.
    now = place.link("current")
    assert place.link("previous") == "20210101T000000Z"
    assert place.names() == {"current", "previous", "notes", now, "20210101T000000Z", "20250101T000000Z"}


def test_going_back_and_forth(place: Place) -> None:
    assert place.run("release.sh", "rollback").returncode == 2
    for name in ("one", "two"):
        place.release(name)
        assert place.run("release.sh", "promote", name).returncode == 0
    for current, previous in (("one", "two"), ("two", "one")):
        assert place.run("release.sh", "rollback").returncode == 0
        assert (place.link("current"), place.link("previous")) == (current, previous)
    # Once more the same release: previous stays what it was.
    assert place.run("release.sh", "promote", "two").returncode == 0 and place.link("previous") == "one"


def test_servers_that_do_not_come_back_get_the_former_release(place: Place, tmp_path: Path) -> None:
    for name in ("one", "two"):
        place.release(name)
    assert place.run("release.sh", "promote", "one").returncode == 0
    # A server that can't open the second.
    reload = 'readlink "$RELEASES/current" >> "$LOG"; [ "$(readlink "$RELEASES/current")" = one ]'
    done = place.run("release.sh", "promote", "two", RELOAD=reload)
    assert done.returncode == 1 and "current is one again" in done.stderr
    assert (place.link("current"), place.link("previous")) == ("one", None)
    assert place.log.read_text().split() == ["two", "one"]
    # Nor is the release lost that was previous before.
    place.release("zero")
    for name in ("zero", "one"):
        assert place.run("release.sh", "promote", name).returncode == 0
    assert place.run("release.sh", "promote", "two", RELOAD=reload).returncode == 1
    assert (place.link("current"), place.link("previous")) == ("one", "zero")


def test_a_server_that_was_started_does_not_hold_the_lock(place: Place) -> None:
    reload = 'sleep 30 > /dev/null 2>&1 & echo $! > "$LOG.pid"'
    assert place.run("reprune.sh", RELOAD=reload).returncode == 0
    server = int(Path(f"{place.log}.pid").read_text())
    try:
        with (place.releases / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(server, signal.SIGTERM)


def test_cron_finds_programs_and_waits_for_the_server() -> None:
    lines = (OPERATE / "crontab").read_text().splitlines()
    named = dict(line.split("=", 1) for line in lines if "=" in line.split(" ", 1)[0] and line[:1].isupper())
    assert {"/usr/bin", "/bin"} <= set(named["PATH"].split(":")) and named["XDG_RUNTIME_DIR"].startswith("/run/user/")
    assert "curl -f" in named["RELOAD"]
    assert subprocess.run(["sh", "-nc", named["RELOAD"]], check=False).returncode == 0


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".", "..", "current", "nothing"])
def test_names_that_are_no_release(place: Place, name: str) -> None:
    done = place.run("release.sh", "promote", name)
    assert done.returncode == 2 and done.stderr and place.names() == set()


def test_a_link_is_never_missing(place: Place) -> None:
    """Read all the time, while it is switched back and forth."""
    for name in ("one", "two"):
        place.release(name)
        assert place.run("release.sh", "promote", name).returncode == 0
    code = f"for n in 1 2 3 4 5 6 7 8; do sh {OPERATE / 'release.sh'} rollback; done"
    turning = subprocess.Popen(
        ["sh", "-c", code], env={**os.environ, "RELEASES": str(place.releases)}, stderr=subprocess.DEVNULL
    )
    seen = set()
    while turning.poll() is None:
        seen.add(os.readlink(place.releases / "current"))
    assert seen <= {"one", "two"} and turning.returncode == 0
