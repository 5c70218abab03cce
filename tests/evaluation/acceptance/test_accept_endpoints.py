"""`prunekit accept` between two servers: what they answer, refuse, and fail at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.run import accept
from prunekit.evaluation.acceptance.verdict import ACCEPTED, NO_VERDICT
from prunekit.utils.endpoints.endpoint import Endpoint
from prunekit.utils.endpoints.naming import shown_model
from tests.support.command import Command
from tests.support.scripted_server import Script, free_port, scripted

COUNT = 20


def answered(text: str, finish: str = "stop", *, chat: bool = False, model: str = "scripted") -> Script:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"message": {"content": text}} if chat else {"text": text}
    usage = {"prompt_tokens": 3, "completion_tokens": len(text)}
    data = json.dumps({"model": model, "choices": [choice], "usage": usage})
    return Script(((0.0, data.encode()),), length=True, headers=(("content-type", "application/json"),))


def prompt_of(body: dict[str, Any]) -> int:
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    return int(text.split()[-1])


def right(body: dict[str, Any], number: int) -> Script:
    return answered(f" {prompt_of(body) + 1}", chat="messages" in body, model=body["model"])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "records.jsonl"
    rows: list[dict[str, Any]] = []
    for at in range(COUNT):
        text = f"The number after {at}"
        asked = {"prompt": text} if at % 2 else {"messages": [{"role": "user", "content": text}]}
        rows.append({**asked, "reference": at + 1, "check": "numeric"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(
    records: Path, out: Path, script: Callable[[dict[str, Any], int], Script], **options: Any
) -> tuple[Any, list[dict[str, Any]]]:
    with scripted(script) as smaller, scripted(right) as dense:
        found = accept(smaller.url, baseline=dense.url, records=records, out=out, policy=Policy(margin=0.3), **options)
        return found, smaller.seen


def test_two_servers(records: Path, tmp_path: Path) -> None:
    found, seen = run(records, tmp_path / "out", right, batch_size=4, max_new_tokens=7)
    assert found.verdict.word == ACCEPTED and found.everything.unit == "characters"
    assert found.everything.error_rate.value == 0 and len(seen) == COUNT
    assert {each["temperature"] for each in seen} == {0} and {each["max_tokens"] for each in seen} == {7}
    assert {each["model"] for each in seen} == {"scripted"} and not any(each.get("stream") for each in seen)
    assert sum("messages" in each for each in seen) == COUNT // 2
    assert found.smaller["endpoint"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("name", "shown"),
    (
        ("/srv/private/tiny.gguf", "tiny.gguf"),
        ("/srv/private/tiny/", "tiny"),
        ("./here/tiny", "tiny"),
        ("~/tiny", "tiny"),
        ("C:\\Users\\anna\\tiny.gguf", "tiny.gguf"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("gpt:4/x", "gpt:4/x"),
        ("/", "/"),
        ("a\x1b[2J", "a\\x1b[2J"),
    ),
)
def test_ids_of_models(name: str, shown: str) -> None:
    assert shown_model(name) == shown


def test_a_model_named_by_its_path_is_told_by_its_last_part(records: Path, tmp_path: Path) -> None:
    pages = {"/v1/models": json.dumps({"data": [{"id": "/srv/private/tiny.gguf"}]})}
    with scripted(right, pages=pages) as smaller, scripted(right) as dense:
        policy = Policy(margin=0.3)
        found = accept(smaller.url, baseline=dense.url, records=records, out=tmp_path / "out", policy=policy)
        assert {each["model"] for each in smaller.seen} == {"/srv/private/tiny.gguf"}
    assert found.smaller["model"] == "tiny.gguf" and found.verdict.word == ACCEPTED
    assert "private" not in (tmp_path / "out" / "accept.json").read_text()


def test_wrong_and_cut_off_answers(records: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Script:
        wrong = prompt_of(body) < 5
        text = "I don't know" if wrong else str(prompt_of(body) + 1)
        return answered(text, "length" if wrong else "stop", chat="messages" in body)

    found, _ = run(records, tmp_path / "out", script)
    everything = found.everything
    assert (everything.worse, everything.better) == (5, 0)
    assert everything.truncated.value == pytest.approx(5 / COUNT) and everything.length_ratio.value > 1
    assert everything.mcnemar_p == pytest.approx(2 / 2**5)
    assert {each.why for each in found.worst} == {"wrong, and cut off"}


def test_a_server_with_one_slot_is_asked_for_one_answer_at_a_time(records: Path, tmp_path: Path) -> None:
    """Else the others' waiting would count as the model's, and slow but healthy ones would fail."""

    def slow(body: dict[str, Any], number: int) -> Script:
        made = right(body, number)
        return replace(made, pieces=((0.05, made.pieces[0][1]),))

    with scripted(slow, slots=1) as smaller, scripted(right) as dense:
        found = accept(
            Endpoint(smaller.url, slots=1),
            baseline=dense.url,
            records=records,
            out=tmp_path / "out",
            policy=Policy(margin=0.3),
            answer_timeout=0.3,
        )
    assert found.everything.failed == 0 and found.verdict.word == ACCEPTED


def test_how_long_an_answer_may_take_is_said(records: Path, tmp_path: Path, command: Command) -> None:
    stalled = Script((), stall=30)
    began = time.monotonic()
    with scripted(lambda body, number: stalled) as smaller, scripted(right) as dense:
        done = command(
            "accept",
            smaller.url,
            "--baseline",
            dense.url,
            "--records",
            records,
            "-o",
            tmp_path / "o",
            "--answer-timeout",
            0.2,
        )
    assert done.code == 3 and time.monotonic() - began < 25
    for wrong in (0, -1, "nan"):
        asked = [
            "accept",
            "a",
            "--baseline",
            "b",
            "--records",
            records,
            "-o",
            tmp_path / "p",
            "--answer-timeout",
            wrong,
        ]
        assert "--answer-timeout is in seconds, above 0" in command(*asked).err


def test_a_busy_server_is_asked_again(records: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Script:
        busy = Script(((0.0, b"{}"),), status=429, headers=(("retry-after", "0"),))
        return busy if number < 3 else right(body, number)

    found, seen = run(records, tmp_path / "out", script, batch_size=1)
    assert found.everything.failed == 0 and len(seen) == COUNT + 3


def test_failures_are_counted_and_too_many_give_no_verdict(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit.evaluation.acceptance.asked.remote_model._PAUSE", 0.0)
    broken = Script(((0.0, b'{"error": {"message": "no room"}}'),), status=500)

    def one(body: dict[str, Any], number: int) -> Script:
        return broken if prompt_of(body) == 3 else right(body, number)

    found, seen = run(records, tmp_path / "out", one)
    # 1 of 20 is more than the 1 % that the policy allows.
    assert found.verdict.word == NO_VERDICT and found.verdict.exit_code == 3
    assert found.everything.failed >= 1 and {each.why for each in found.worst} <= {
        "no answer (status 500)",
        "no answer (not asked: too many records before it failed)",
    }
    assert "no room" not in (tmp_path / "out" / "accept.json").read_text()
    assert sum(prompt_of(each) == 3 for each in seen) == 3
    with scripted(one) as smaller, scripted(right) as dense:
        policy = Policy(margin=0.3, max_failed=0.1)
        found = accept(
            smaller.url,
            baseline=dense.url,
            records=records,
            out=tmp_path / "out",
            policy=policy,
            overwrite=True,
            show_texts=True,
        )
    assert "status 500" in found.worst[0].why and "no room" in found.worst[0].why
    assert found.verdict.word == ACCEPTED and found.everything.failed == 1 and found.everything.worse == 1


def test_the_fallback_of_a_gateway_is_not_judged_as_the_smaller_model(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit.evaluation.acceptance.asked.remote_model._PAUSE", 0.0)

    def gateway(body: dict[str, Any], number: int) -> Script:
        fallen = prompt_of(body) in (3, 4)
        return answered(f" {prompt_of(body) + 1}", chat="messages" in body, model="dense" if fallen else "scripted")

    found, _ = run(records, tmp_path / "out", gateway)
    assert found.verdict.word == NO_VERDICT and found.everything.failed >= 1
    assert "; another model answered: " in found.verdict.reasons[0]
    assert found.verdict.reasons[0].endswith("Ask the server of the model itself, not a gateway with a fallback.")
    with scripted(gateway) as smaller, scripted(right) as dense:
        policy = Policy(margin=0.5, max_failed=0.2)
        told: dict[str, Any] = {"baseline": dense.url, "records": records, "policy": policy}
        found = accept(smaller.url, out=tmp_path / "more", **told)
    everything = found.everything
    assert (everything.failed, everything.why_failed, everything.worse) == (2, {"another model answered": 2}, 2)
    assert everything.baseline_why_failed == {}
    assert {each.why for each in found.worst} == {"no answer (another model answered)"}


def test_a_model_is_not_compared_with_itself(records: Path, tmp_path: Path) -> None:
    pages = {"/v1/models": json.dumps({"data": [{"id": "scripted"}, {"id": "dense"}]})}
    with scripted(right, pages=pages) as server:
        told: dict[str, Any] = {"records": records, "out": tmp_path / "out", "policy": Policy(margin=0.3)}
        with pytest.raises(PrunekitError, match="The smaller model and the baseline are both 'scripted' of"):
            accept(server.url, baseline=server.url.replace("127.0.0.1", "localhost") + "/v1", **told)
        assert not server.seen and not (tmp_path / "out").exists()
        found = accept(server.url, baseline=server.url, baseline_served_name="dense", **told)
        assert found.verdict.word == ACCEPTED and found.baseline["model"] == "dense"


def test_a_server_that_is_gone_or_stalls_ends_the_run(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.evaluation.acceptance.asked import remote_model

    monkeypatch.setattr(remote_model, "_PAUSE", 0.0)
    begin = time.perf_counter()
    script = Script(((30.0, b"x"),), length=True)
    found, seen = run(records, tmp_path / "out", lambda body, number: script, answer_timeout=0.5)
    assert found.verdict.word == NO_VERDICT and found.everything.failed == COUNT and len(seen) < 2 * COUNT
    assert time.perf_counter() - begin < 30
    dead = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(PrunekitError, match="does not answer"):
        accept(dead, baseline=dead, records=records, out=tmp_path / "dead")
    assert not (tmp_path / "dead").exists()


def test_answers_of_servers_hold_for_one_run(records: Path, tmp_path: Path) -> None:
    """Behind the same address may be another model tomorrow; a run that was stopped goes on all the same."""
    out = tmp_path / "out"
    with scripted(right) as smaller, scripted(right) as dense:
        told: dict[str, Any] = {"baseline": dense.url, "records": records, "out": out, "policy": Policy(margin=0.3)}
        assert accept(smaller.url, **told).run["asked"] == {"smaller": COUNT, "baseline": COUNT}
        assert accept(smaller.url, **told, overwrite=True).run["asked"] == {"smaller": COUNT, "baseline": COUNT}
        lines = (out / "answers.jsonl").read_text().splitlines()
        # As if the second run had been killed in its middle.
        (out / "answers.jsonl").write_text("\n".join(lines[: -COUNT - 6]) + "\n")
        (out / "accept.json").unlink()
        assert accept(smaller.url, **told).run["asked"] == {"smaller": 5, "baseline": COUNT}


def test_the_command_takes_addresses(command: Command, records: Path, tmp_path: Path) -> None:
    with scripted(right) as smaller, scripted(right) as dense:
        told = ("accept", smaller.url, "--baseline", dense.url, "--records", records, "-o", tmp_path / "out")
        made = command(*told, "--json")
        assert made.code == 3 and made.json["verdict"] == "too few to tell"
        refused = command(*told, "--overwrite", "--served-name", "another")
        assert refused.code == 2 and "has no model 'another'" in refused.err
        refused = command(*told, "--overwrite", "--api-key-env", "PRUNEKIT_NO_SUCH_KEY")
        assert refused.code == 2 and "is not set" in refused.err
