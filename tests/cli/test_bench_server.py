"""``prunekit bench-server``: tables, files, and how it ends where it can't."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Command, start
from tests.support.scripted_server import Script, answer, free_port, scripted

QUICK = ("--requests", 4, "--turns", 2, "--concurrency", 1, "--new-tokens", 3, "--natural-tokens", 3)
BOUNDED = ("--max-minutes", 0.5, "--timeout", 2, "--warmup-requests", 3)


def paced(body: dict[str, Any], number: int) -> Script:
    return answer(body["max_tokens"], ttft=0.01, tpot=0.002)


def test_tables_files_and_json(command: Command, tmp_path: Path) -> None:
    serve, rows = tmp_path / "serve.json", tmp_path / "requests.jsonl"
    with scripted(paced) as dense, scripted(paced) as pruned:
        asked = ("bench-server", "--url", pruned.url, "--baseline-url", dense.url, *QUICK, *BOUNDED)
        done = command(*asked, "-o", serve, "--rows", rows)
        assert not done.code, done.err
        assert "closed loop, 1 at a time" in done.out and "ratio" in done.out and "synthetic" in done.out
        # A file that is there is not replaced, and what prunekit did not write never.
        assert command(*asked, "-o", serve).code == 2
        rows.write_text("mine")
        refused = command(*asked, "-o", serve, "--rows", rows, "--overwrite")
        assert refused.code == 2 and rows.read_text() == "mine"
        again = command(*asked, "-o", serve, "--overwrite", "--json")
    assert not again.code, again.err
    written = json.loads(serve.read_text())
    assert written == again.json and written["format"] == "prunekit-server-bench"
    assert {*written["served"]} == {"baseline", "endpoint"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Name a server with --url, or a model to serve"),
        (("model", "--url", "http://127.0.0.1:1"), "not both"),
        (("model", "--served-name", "x"), "--served-name is the name of a model at an address"),
        (("model", "--baseline-served-name", "x"), "--baseline-served-name is the name"),
        (("model", "--api-key-env", "PATH"), "--api-key-env is of servers at an address"),
        (("--url", "http://127.0.0.1:1", "--slots", "4"), "--slots is of servers that are started here"),
        (("no-such.gguf", "--slots", "0"), "slots must be from 1"),
        (("--url", "http://127.0.0.1:1", "-o", "a.json", "--rows", "./a.json"), "give each a file of its own"),
        (("--url", "localhost:80"), "is no address of a server"),
        (("--url", "http://127.0.0.1:1", "--slo", "fast"), "is no SLO"),
        (("--url", "http://127.0.0.1:1", "--requests", "1"), "Requests must be a whole number"),
        (("--url", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_KEY"), "is not set"),
        (("--url", "http://127.0.0.1:1", "--trace", "no-such-file.csv"), "does not exist"),
    ],
)
def test_bad_input_is_told_in_one_sentence(command: Command, options: tuple[str, ...], said: str) -> None:
    done = command("bench-server", *options)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_servers_that_are_not_there_or_only_fail(command: Command, tmp_path: Path) -> None:
    serve = tmp_path / "serve.json"
    dead = command("bench-server", "--url", f"http://127.0.0.1:{free_port()}", *BOUNDED, "-o", serve)
    assert dead.code == 2 and "does not answer" in dead.err
    with scripted(
        lambda *_: Script(((0, b'{"error": {"message": "out of \\u001b[31mmemory"}}'),), status=500)
    ) as server:
        failing = command("bench-server", "--url", server.url, *BOUNDED, "-o", serve)
    assert failing.code == 2 and "status 500 (out of \\x1b[31mmemory)" in failing.err and not serve.exists()


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    serve = tmp_path / "serve.json"

    def slow(body: dict[str, Any], number: int) -> Script:
        return answer(body["max_tokens"], ttft=0.01 if number < 16 else 2.0, tpot=0.001)

    with scripted(slow) as server:
        more = ("--requests", 12, "--warmup-requests", 3, "-o", serve)
        with start("bench-server", "--url", server.url, *QUICK, *more) as process:
            end = time.monotonic() + 120
            # The closed loop is done, and another under way.
            while len(server.seen) < 19 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(60)
    assert process.returncode == 130, told
    data = json.loads(serve.read_text())
    assert data["stopped"] == "it was stopped" and data["loads"][0]["endpoint"]["requests"]
