"""Load tests of servers, acceptance tests and watches: what they tell a report, and what of them is on the page."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import Prices
from prunekit.report.facts.claims import MEASURED, Claim, Figure, FileSaid, Subject
from prunekit.report.facts.costs import _costs, priced
from prunekit.report.facts.rows import group
from prunekit.report.readers.registry import read_files
from prunekit.report.write import write_report
from tests.report.test_page import EVIL, Reader
from tests.support.operate_files import (
    DENSE,
    PRUNED,
    acceptance,
    capacity,
    compared,
    cost,
    load,
    loaded,
    quantiles,
    ratio,
    searched,
    served,
    server_bench,
    spent,
    watch,
)
from tests.support.report_files import evaluation, write

MAKERS = {"serve": lambda **more: server_bench(**{"cost": cost(), **more}), "accept": acceptance, "watch": watch}


def read(folder: Path, data: Any) -> FileSaid:
    (said,) = read_files([write(folder / "file.json", data)])
    return said


def claims(said: FileSaid, metric: str, name: str = "small") -> list[Claim]:
    return [each for each in said.reading.claims if each.metric == metric and each.subject.name == name]


def made(folder: Path, *files: Any, **options: Any) -> tuple[str, dict[str, Any]]:
    paths = [each if isinstance(each, Path) else write(folder / f"{n}.json", each) for n, each in enumerate(files)]
    report = write_report(paths, folder / "page.html", overwrite=True, **options)
    return report.page.read_text(), json.loads(report.kpis.read_text())


def test_a_load_test(tmp_path: Path) -> None:
    said = read(tmp_path, server_bench())
    (most,) = claims(said, "slo_load")
    assert (most.figure.value, most.figure.low, most.figure.high) == (5.0, 4.5, pytest.approx(5.5))
    assert most.figure.interval == "over 2 blocks"
    assert most.setup.endswith("client on Test CPU, within TTFT ≤ 500 ms, TPOT ≤ 50 ms at p95")
    assert claims(said, "slo_load", "dense-model")[0].figure.value == 4.0
    (gain,) = claims(said, "slo_load_ratio")
    assert (gain.figure.value, gain.figure.low) == (1.25, 1.125) and gain.against is not None
    assert claims(said, "slo_load_ratio", "dense-model")[0].figure.status == "exact"
    # p99 of 60 requests has no upper bound, so it is no figure.
    assert len(claims(said, "ttft")) == len(claims(said, "ttft_p95")) == 3 and not claims(said, "ttft_p99")
    assert claims(said, "ttft")[0].figure.value == pytest.approx(0.12)
    assert "TTFT at p99 under closed load: 60 requests are too few for it." in said.reading.not_measured
    # Lengths and ends are those of answers that end by themselves.
    assert [each.setup.rpartition(", ")[2] for each in claims(said, "truncated_share")] == ["2 at a time"]
    assert claims(said, "length_ratio")[0].figure.value == 1.2
    # Output within the SLO is requests times their length.
    (tokens,) = (each for each in claims(said, "tokens_per_second") if each.figure.status == "estimated")
    assert tokens.figure.value == 80.0 and tokens.setup == most.setup
    (proof,) = said.reading.proofs
    assert (proof.word, proof.passes) == ("1.25 × the dense model's load (1.12 to 1.38)", True)
    (sheet,) = proof.sheets
    cells = {row[0]: row[1:] for row in sheet.rows}
    assert cells["closed load: first token, p50 / p95 / p99"] == (
        "150 / 195 / 199 (too few) ms",
        "120 / 156 / 159.2 (too few) ms",
        "0.800 (0.720 to 0.880)",
    )
    assert cells["natural lengths, 2 at a time: answers cut off"] == ("25.0%", "25.0%", "–")
    assert len(sheet.rows) == 4 * 3 + 2


def test_the_first_token_after_reasoning_has_a_row(tmp_path: Path) -> None:
    both = [loaded("closed", each, first_answer=quantiles(5 * each), reasoning=1.0) for each in (0.1, 0.08)]
    said = read(tmp_path, server_bench(loads=[load("closed", baseline=both[0], endpoint=both[1])]))
    cells = {row[0]: row[1:] for row in said.reading.proofs[0].sheets[0].rows}
    assert cells["closed load: first token after the reasoning, p50 / p95 / p99"][:2] == (
        "750 / 975 / 995 (too few) ms",
        "600 / 780 / 796 (too few) ms",
    )
    plain = read(tmp_path, server_bench(loads=[load("closed")])).reading.proofs[0].sheets[0]
    assert not any("reasoning" in row[0] for row in plain.rows)


@pytest.mark.parametrize(
    ("said", "word", "passes"),
    [
        (None, "no SLO was asked for", None),
        (capacity(smaller=None), "SLO not met", False),
        (capacity(ratio=ratio(1.2, count=1)), "1.20 × the dense model's load (too few blocks for an interval)", None),
        (capacity(ratio=ratio(0.5)), "0.50 × the dense model's load (0.45 to 0.55)", False),
        (capacity(ratio=ratio(1.01)), "1.01 × the dense model's load (0.91 to 1.11)", None),
        (
            capacity(endpoints=[searched(4.0), searched(8.0, "never broken")], ratio=ratio(None)),
            "SLO never broken",
            None,
        ),
        (
            capacity(endpoints=[searched(None), searched(0.2, "time was up")], ratio=ratio(None)),
            "at least 0.2 requests/s within the SLO; the time was up before the search was done",
            None,
        ),
    ],
)
def test_words_on_the_load(tmp_path: Path, said: Any, word: str, passes: bool | None) -> None:
    (proof,) = read(tmp_path, server_bench(capacity=said)).reading.proofs
    assert (proof.word, proof.passes) == (word, passes)


def test_an_slo_that_is_not_met_has_no_load(tmp_path: Path) -> None:
    said = read(tmp_path, server_bench(capacity=capacity(smaller=None)))
    assert not claims(said, "slo_load") and claims(said, "slo_load", "dense-model")
    assert "This model: the SLO is not met at any load that was tried." in said.reading.proofs[0].reasons


def test_void_loads_are_not_believed(tmp_path: Path) -> None:
    void = loaded("closed", 0.08, void=["The client was late by 80 ms."], status="void")
    said = read(tmp_path, server_bench(loads=[load("closed", endpoint=void)], believed=False, stopped="time was up"))
    assert not any(each.figure.believed for each in claims(said, "ttft") + claims(said, "ttft_ratio"))
    assert all(each.figure.believed for each in claims(said, "ttft", "dense-model"))
    assert said.reading.proofs[0].word.endswith("not to be believed")
    assert list(said.reading.warnings) == [
        "file.json: the load test ended early: time was up.",
        "file.json: closed load of the endpoint is not to be believed: The client was late by 80 ms.",
    ]


def test_money_of_the_test_itself(tmp_path: Path) -> None:
    said = read(tmp_path, server_bench(cost=cost()))
    costs = claims(said, "dollars_per_request")
    assert [each.figure.value for each in costs] == [1e-4, 2e-4] and costs[0].figure.status == "estimated"
    assert costs[1].setup.endswith("at p95, 50% used, prices of file.json")
    (rework,) = claims(said, "rework_allowed")
    assert rework.figure.value == pytest.approx(0.00125) and rework.setup == costs[0].setup
    sheet = said.reading.proofs[0].sheets[0]
    assert sheet.rows[0] == ("100% used: $ an answered request", "≈ 0.000125", "≈ 0.0001")
    assert sheet.rows[-1] == ("break-even: rework that may be added", "", "≈ 0.125 percentage points")
    _, kpis = made(tmp_path, server_bench(cost=cost()))
    assert kpis["rows"][1]["decision"]["rework_allowed"]["value"] == pytest.approx(0.00125)


@pytest.mark.parametrize("status", ["never broken", "time was up"])
def test_a_load_that_may_be_more_bounds_what_it_costs(tmp_path: Path, status: str) -> None:
    """A difference of bounds bounds nothing, so no rework rate follows; nor one from a file that computed it."""
    ended = capacity(endpoints=[searched(4.0, status), searched(5.0)])
    data = server_bench(capacity=ended, cost=cost())
    said = read(tmp_path, data)
    (most,) = claims(said, "slo_load", "dense-model")
    assert most.figure.bound == "at least" and claims(said, "slo_load")[0].figure.bound == ""
    assert {each.figure.bound for each in claims(said, "dollars_per_request", "dense-model")} == {"at most"}
    assert not claims(said, "rework_allowed")
    assert said.reading.proofs[0].sheets[0].rows[-1][-1].startswith("not measured: ")
    prices = Prices(dollars_per_hour=3.6, dollars_per_rework=2.0)
    assert "≥ 4" in made(tmp_path, data, prices=prices)[0]
    costs = [each for row in priced(group([said]), prices).rows for each in row.claims]
    at_most = [each for each in costs if each.metric == "dollars_per_request" and each.figure.bound]
    assert at_most and all(each.figure.bound == "at most" for each in at_most)
    assert not any(each.metric == "rework_allowed" and "within TTFT" in each.setup for each in costs)


def test_joules_at_the_server(tmp_path: Path) -> None:
    loads = [load("closed", energy={"baseline": spent(3.0, 2.0), "endpoint": spent()})]
    said = read(tmp_path, server_bench(loads=loads))
    whole, above = claims(said, "joules_per_token")
    assert (whole.figure.value, whole.figure.low, whole.figure.status) == (2.0, 1.8, MEASURED)
    assert whole.setup.endswith("closed load, measured, zeus, gpu board")
    assert above.figure.value == 1.0 and above.setup == f"{whole.setup}, above the idle machine"
    assert [each.figure.value for each in claims(said, "joules_per_request")] == [32.0, 16.0]
    assert claims(said, "joules_per_token", "dense-model")[0].setup == whole.setup
    assert not any("Energy" in each for each in said.reading.not_measured)
    page, kpis = made(tmp_path, server_bench(loads=loads))
    assert kpis["rows"][1]["decision"]["joules_per_token"]["value"] == 2.0 and "Energy of a request" in page
    # A load that is not to be believed has no joules to believe either.
    void = loaded("closed", 0.08, void=["The client was late by 80 ms."], status="void")
    said = read(tmp_path, server_bench(loads=[load("closed", endpoint=void, energy=loads[0]["energy"])]))
    assert not any(each.figure.believed for each in claims(said, "joules_per_token"))


def test_joules_that_were_not_measured(tmp_path: Path) -> None:
    none = {"baseline": spent(None, None), "endpoint": spent(None, None)}
    said = read(tmp_path, server_bench(loads=[load("closed", energy=none), load("open", energy=none)]))
    assert not claims(said, "joules_per_token")
    assert said.reading.not_measured.count("Energy in file.json: there is no counter.") == 1
    half = {"baseline": spent(above=None), "endpoint": spent(above=None, why="no time")}
    said = read(tmp_path, server_bench(loads=[load("closed", energy=half), load("open", energy=None)]))
    assert len(claims(said, "joules_per_token")) == 1
    assert "Energy above the idle machine in file.json: no time." in said.reading.not_measured


def test_failed_requests_are_infinitely_slow(tmp_path: Path) -> None:
    slow = loaded("closed", 0.08, failed=40)
    slow["ttft"][1] |= {"value": None, "low": None, "high": None, "failed": ["value", "low", "high"]}
    said = read(tmp_path, server_bench(loads=[load("closed", endpoint=slow)]))
    assert not claims(said, "ttft_p95") and claims(said, "failed_share")[0].figure.value == pytest.approx(2 / 3)
    cells = {row[0]: row[1:] for row in said.reading.proofs[0].sheets[0].rows}
    assert cells["closed load: first token, p50 / p95 / p99"][1] == "120 / infinite / 159.2 (too few) ms"
    assert cells["closed load: failed"][1] == "40 of 60"


def test_one_server_alone(tmp_path: Path) -> None:
    alone = {key: value for key, value in load("closed").items() if key != "baseline"} | {"ratios": {}}
    data = server_bench(served={"endpoint": served("small", "")}, loads=[alone])
    data["served"]["endpoint"]["identity"] = None
    data["capacity"] = capacity(endpoints=[searched(5.0)], ratio=ratio(None))
    said = read(tmp_path, data)
    assert {each.subject.name for each in said.reading.claims} == {"small"} and not claims(said, "ttft_ratio")
    assert said.reading.proofs[0].word == "SLO met" and said.reading.proofs[0].sheets[0].heads == ("Load", "small")


def test_how_many_requests_a_server_answers_is_a_part_of_the_set_up(tmp_path: Path) -> None:
    both = {
        side: served(name, digest) for side, name, digest in (("baseline", "d", DENSE), ("endpoint", "small", PRUNED))
    }
    for each in both.values():
        each["identity"] |= {"slots": 4}
    said = read(tmp_path, server_bench(served=both))
    assert "transformers 5.23.0 with 1 thread, 4 requests at a time" in claims(said, "ttft")[0].setup
    assert dict(said.reading.facts)["server of the endpoint"].startswith(
        "small, transformers 5.23.0 with 1 thread, 4 req"
    )


def test_two_servers_that_call_their_models_alike_are_two(tmp_path: Path) -> None:
    data = server_bench()
    for each in data["served"].values():
        each |= {"model": "model", "identity": None}
    assert [each.name for each, _ in read(tmp_path, data).reading.subjects] == ["model (baseline)", "model (endpoint)"]


def test_a_served_file_is_the_export_that_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    manifest = {
        "format": "prunekit-export",
        "target": "gguf",
        "dtype": "q8_0",
        "verified": False,
        "unverified": "no runtime",
        "source": {"name": "small", "fingerprint": "bb" * 32},
        "files": {"small-q8_0.gguf": "cc" * 32},
    }
    write(folder / "prunekit_export.json", manifest)
    data = server_bench()
    data["served"]["endpoint"] = served("small-q8_0", "cc" * 32, "llama_cpp.server")
    data["served"]["baseline"] = served("dense-q8_0", "dd" * 32, "llama_cpp.server")
    asked = acceptance()
    for side, name, digest in (("smaller", "small-q8_0", "cc" * 32), ("baseline", "dense-q8_0", "dd" * 32)):
        told = {"model": name, "endpoint": "127.0.0.1:1", "fingerprint": None, "server": "llama_cpp.server"}
        asked[side] = {**told, "model_sha256": digest}
    _, kpis = made(tmp_path, evaluation(), folder / "prunekit_export.json", data, asked)
    rows = {(row["name"], row["form"]): row for row in kpis["rows"]}
    assert set(rows) == {
        ("dense-model", "checkpoint"),
        ("dense-q8_0", "gguf"),
        ("small", "checkpoint"),
        ("small", "gguf q8_0"),
    }
    assert rows["small", "gguf q8_0"]["figures"]["slo_load"][0]["value"] == 5.0
    assert {each["kind"] for each in rows["small", "gguf q8_0"]["proofs"]} == {"load at the server", "acceptance"}
    assert rows["dense-q8_0", "gguf"]["figures"]["error_rate"][0]["value"] == 0.1


def test_an_acceptance_test(tmp_path: Path) -> None:
    said = read(tmp_path, acceptance())
    (wrong,) = claims(said, "error_rate")
    assert (wrong.figure.value, wrong.figure.low, wrong.figure.high) == (0.12, 0.08, 0.17)
    assert wrong.setup == f"your 200 records, SHA-256 {('ab' * 32)[:12]}"
    assert claims(said, "error_rate", "dense-model")[0].figure.value == 0.1
    (rise,) = claims(said, "error_rise")
    assert (rise.figure.value, rise.figure.low, rise.figure.interval) == (0.02, -0.01, "90 % interval")
    (proof,) = said.reading.proofs
    assert (proof.word, proof.passes) == ("too few to tell", None)
    assert [each.title for each in proof.sheets] == ["All 200 records", "What the policy asks", "By group"]
    assert proof.sheets[2].rows[0][:2] == ("sums", "80") and proof.sheets[1].rows[0][2] == "too few to tell"
    assert any("200 records are too few, about 1,500 are needed" in row[3] for row in proof.sheets[0].rows)
    assert any("200 are too few; the test needs about 1,500" in each for each in said.reading.not_measured)


@pytest.mark.parametrize(("word", "passes"), [("accepted", True), ("refused", False), ("no verdict", None)])
def test_verdicts_of_acceptance(tmp_path: Path, word: str, passes: bool | None) -> None:
    said = read(tmp_path, acceptance(verdict=word))
    assert said.reading.proofs[0].passes is passes and bool(said.reading.warnings) == (word == "no verdict")


def test_a_watch(tmp_path: Path) -> None:
    said = read(tmp_path, watch())
    (kl,) = claims(said, "shadow_kl")
    # Student's t of 20 requests: 2.093 standard errors.
    assert kl.figure.value == 0.25 and kl.figure.low == pytest.approx(0.25 - 0.02093, abs=1e-4)
    assert claims(said, "shadow_agreement")[0].figure.value == pytest.approx(0.7)
    assert claims(said, "rejected_share")[0].figure.value == 0.04 and not claims(said, "reworked_share")
    assert claims(said, "alarms")[0].figure.value == 1
    (proof,) = said.reading.proofs
    assert (proof.word, proof.passes) == ("investigate", False) and proof.do.startswith("Compare the served")
    first = proof.sheets[0].rows[0]
    assert first[0].startswith("KL of the dense model") and first[-1] == "up since window 3 (2025-10-09 11:53 UTC)"
    assert [row[-1] for row in proof.sheets[0].rows[1:]] == [
        "not told: the log tells no latencies",
        "within its limit",
        "off: no model",
    ]
    assert "The alarm is active since window 3, after 600 requests (told 2026-01-01T00:00:00Z)." in proof.reasons
    assert said.reading.not_measured == (
        "Signal latency of small: the log tells no latencies.",
        "Signal prompt_mmd of small: no model.",
    )
    assert "the watch of small says: investigate." in said.reading.warnings[0]


def test_intervals_of_a_watch_stay_in_their_range(tmp_path: Path) -> None:
    wide = watch()
    signals = wide["last_window"]["signals"]
    for name in ("shadow_kl", "shadow_disagreement"):
        signals[name]["details"] = {"requests": 20, "standard_error": 1.0}
    said = read(tmp_path, wide)
    (kl,), (agreement,) = claims(said, "shadow_kl"), claims(said, "shadow_agreement")
    assert kl.figure.low == 0 and kl.figure.high == pytest.approx(0.25 + 2.093, abs=1e-3)
    assert (agreement.figure.low, agreement.figure.high) == (0, 1)


def test_a_watch_that_names_no_model_makes_no_row(tmp_path: Path) -> None:
    page, kpis = made(tmp_path, evaluation(), watch(models={}, verdict="ok", alarm=None))
    assert [row["name"] for row in kpis["rows"]] == ["dense-model", "small"]
    assert [each["verdict"] for each in kpis["proofs_of_no_row"]] == ["ok"]
    assert "A model that the file does not name" in page


def test_a_path_is_no_name(tmp_path: Path) -> None:
    page, _ = made(tmp_path, watch(models={"model": "/home/somebody/secret/small"}))
    assert "somebody" not in page and "small" in page


def test_a_watch_that_has_just_begun(tmp_path: Path) -> None:
    said = read(tmp_path, watch(windows=0, verdict="ok", last_window=None, recent=[], changes=[], alarm=None))
    assert said.reading.proofs[0].word == "no whole window was read yet" and said.reading.proofs[0].passes is None


def test_all_of_one_model_stand_together(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("dollars_per_hour = 1.8\ndollars_per_rework = 2.0\n")
    page, kpis = made(tmp_path, evaluation(), server_bench(), acceptance(), watch(), prices=prices)
    assert [row["name"] for row in kpis["rows"]] == ["dense-model", "small"]
    assert [each["kind"] for each in kpis["rows"][1]["proofs"]] == ["load at the server", "acceptance", "watch"]
    decided = kpis["rows"][1]["decision"]
    assert decided["slo_load"]["value"] == 5.0 and decided["error_rate"]["value"] == 0.12
    # 1.8 $ an hour: 0.0005 $ / requests/s. On the user's records the smaller one writes 1.1 times as much (on the load
    # test's texts 1.2 times), so it saves 0.000125 - 0.00011 $ a request.
    assert decided["rework_allowed"]["value"] == pytest.approx(0.000015 / 2)
    assert decided["dollars_per_million"]["setup"].endswith("within TTFT ≤ 500 ms, TPOT ≤ 50 ms at p95")
    # 5 requests/s of 16 tokens.
    assert decided["dollars_per_million"]["value"] == pytest.approx(1e6 * 1.8 / 3600 / 80)
    figures = kpis["rows"][1]["figures"]
    within = [each for each in figures["dollars_per_request"] if "within" in each["setup"]]
    assert within[0]["value"] == pytest.approx(1.1e-4) and within[0]["status"] == "estimated"
    assert "answers 1.1 times as long as the dense model's (2.json)" in within[0]["how"]
    assert within[0]["files"] == ["1.json", "2.json"]
    # A load whose answers end by themselves holds their lengths already.
    natural = [each for each in figures["dollars_per_request"] if "natural" in each["setup"]]
    assert natural[0]["value"] == pytest.approx(0.0005 / 12.5)
    (accepted,) = figures["dollars_per_accepted"]
    assert accepted["value"] == pytest.approx(1.1e-4 + 0.12 * 2) and len(accepted["files"]) == 2
    # Half of the answers are given again by the dense model, for 0.000125 $ each.
    prices.write_text("dollars_per_hour = 1.8\ndollars_per_rework = 2.0\nfallback_share = 0.5\n")
    _, more = made(tmp_path, evaluation(), server_bench(), acceptance(), watch(), prices=prices)
    (accepted,) = more["rows"][1]["figures"]["dollars_per_accepted"]
    assert accepted["value"] == pytest.approx(1.1e-4 + 0.5 * 1.25e-4 + 0.12 * 2) and "for 0.5 of" in accepted["how"]
    found = Reader(page)
    assert [each["id"] for each in found.named("h2")][:2] == ["decision", "proved"]
    section = page[page.index('id="proved"') : page.index('id="figures"')]
    places = [section.index(each) for each in ("Load at the server", "Acceptance on your", "Watch of request")]
    assert places == sorted(places) and "What to do" in section
    assert "acceptance: too few to tell" in page[: page.index('id="proved"')]
    assert kpis["summary"].endswith(
        "The acceptance test of small (row A) came to: too few to tell; the watch of small (row A) says: investigate."
    )


def test_what_falls_back_to_a_model_of_unknown_cost_is_not_priced() -> None:
    told = {"slo_load": 5.0, "error_rate": 0.1}
    most, wrong = (Claim(Subject("small"), "", name, Figure(value, MEASURED)) for name, value in told.items())
    row: Any = SimpleNamespace(claims=(most, wrong), dense=False)
    for share, value in ((0.5, None), (0.0, pytest.approx(1e-4 + 0.2))):
        prices = Prices(dollars_per_hour=1.8, dollars_per_rework=2.0, fallback_share=share)
        *_, accepted = _costs(row, [], None, prices)
        assert accepted.metric == "dollars_per_accepted" and accepted.figure.value == value
    assert "not known" not in accepted.figure.how


def test_there_is_no_empty_part(tmp_path: Path) -> None:
    page, kpis = made(tmp_path, evaluation())
    assert "proved" not in page[: page.index("application/json")] and kpis["rows"][1]["proofs"] == []


def test_records_are_shown_only_where_that_is_asked_for(tmp_path: Path) -> None:
    page, kpis = made(tmp_path, acceptance())
    assert "secret" not in page and "sum-3" not in page and "1 record that went from right to wrong is left out" in page
    page, kpis = made(tmp_path, acceptance(), show_texts=True)
    assert "user: my secret question" in page and "my secret answer" in page and "(no answer)" in page
    assert "secret" not in json.dumps(kpis) and "sum-3" not in json.dumps(kpis)
    lacking = acceptance()
    lacking["worst"][0]["texts"] = None
    assert "accept was run without --show-texts" in made(tmp_path, lacking, show_texts=True)[0]
    # The schema that every answer fits.
    schema = acceptance()
    schema["worst"][0]["texts"]["references"] = True
    assert ">true<" in made(tmp_path, schema, show_texts=True)[0]


def test_a_strangers_texts_are_never_obeyed(tmp_path: Path) -> None:
    judged = acceptance(groups={EVIL: compared(5)}, reasons=[EVIL])
    judged["worst"][0] |= {"id": EVIL, "group": EVIL, "why": EVIL}
    judged["worst"][0]["texts"] |= {"answer": EVIL, "asked": [{"role": EVIL, "content": EVIL}], "references": EVIL}
    watched = watch(do=EVIL, reasons=[EVIL], models={"model": EVIL})
    watched["signals"][0] |= {"title": EVIL, "kind": EVIL, "status": EVIL}
    tested = server_bench(notes=[EVIL], stopped=EVIL)
    tested["loads"][0] |= {"load": EVIL}
    tested["capacity"]["endpoints"][1]["words"] = EVIL
    page, _ = made(tmp_path, judged, watched, tested, show_texts=True)
    found = Reader(page)
    assert len(found.named("script")) == 2 and not found.named("img")
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("serve", {"version": 2}, "is of version 2, and this prunekit reads version 1"),
        ("serve", {"version": None}, "lacks version"),
        ("serve", {"served": {}}, "lacks served.endpoint"),
        ("serve", {"loads": {}}, "holds an object as loads, where a list is expected"),
        ("serve", {"capacity": capacity(endpoints=[])}, "where a result for each model is expected"),
        ("serve", {"capacity": capacity(endpoints=[searched(1.0, "won")] * 2)}, "where one of found, never met"),
        ("serve", {"capacity": capacity(slo={"percentile": 1e9})}, "capacity.slo.percentile"),
        (
            "serve",
            {"cost": {"endpoints": {"endpoint": [{"utilisation": 2}]}}},
            "cost.endpoints.endpoint[0].utilisation",
        ),
        ("serve", {"loads": [load("closed")] * 201}, "lists 201 entries in loads"),
        ("accept", {"verdict": "fine"}, "where one of accepted, refused"),
        ("accept", {"all": compared(error_rate={"value": "x"})}, "all.error_rate.value"),
        ("accept", {"all": compared(error_rate={"value": 1.5})}, "a number of at most 1"),
        ("accept", {"all": compared(worse=1.5)}, "where a whole number is expected"),
        ("accept", {"groups": {"a": 3}}, "holds 3 as groups.a"),
        ("accept", {"worst": [{"id": "a", "why": "b", "texts": {"asked": True}}]}, "worst[0].texts.asked"),
        ("accept", {"policy": None}, "lacks policy"),
        ("watch", {"verdict": "panic"}, "where one of ok, notice"),
        ("watch", {"windows": -1}, "windows"),
        ("watch", {"config": {"window": 0}}, "config.window"),
        ("watch", {"changes": [{"window": 1, "last": 1e300, "verdict": "ok"}]}, "changes[0].last"),
        ("watch", {"signals": [{}]}, "lacks signals[0].name"),
        ("watch", {"models": {"model": 3}}, "models.model"),
        ("watch", {"log": {"problems": {"broken": 3}}}, "log.problems.broken"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, kind: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PrunekitError) as raised:
        read(tmp_path, MAKERS[kind](**changes))
    assert says in str(raised.value) and str(raised.value).endswith(".")


def _spoiled(rng: random.Random, data: Any) -> Any:
    """``data`` with one value, at any depth, replaced or gone."""
    data = deepcopy(data)
    at = data
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        below = at[key]
        if isinstance(below, dict | list) and below and rng.random() < 0.8:
            at = below
            continue
        wrong: list[Any] = [None, True, -1, 1e308, "x", [], {}, [{}], {"a": 1}, EVIL, 10**400]
        if isinstance(at, dict) and rng.random() < 0.3:
            del at[key]
        else:
            at[key] = rng.choice(wrong)
        return data


@pytest.mark.parametrize("kind", list(MAKERS))
def test_whatever_is_spoiled_there_is_a_page_or_a_sentence(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    refused = 0
    for _ in range(40):
        try:
            Reader(made(tmp_path, _spoiled(rng, MAKERS[kind]()), show_texts=True)[0])
        except PrunekitError as error:
            refused += 1
            assert str(error).endswith(".") and len(str(error)) < 1500
    assert 3 < refused < 40


def test_folders_of_accept_and_watch_are_read(tmp_path: Path) -> None:
    for name, data in (("accept", acceptance()), ("watch", watch())):
        (tmp_path / name).mkdir()
        write(tmp_path / name / f"{name}.json", data)
    said = read_files([tmp_path / "accept", tmp_path / "watch"])
    assert [(each.name, each.reading.kind) for each in said] == [
        ("accept.json", "acceptance test"),
        ("watch.json", "watch of request logs"),
    ]
