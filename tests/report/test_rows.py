"""Which figures stand in one row and one column, and which are told apart."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.profiling.prices import Prices
from prunekit.report.facts.agree import resolved
from prunekit.report.facts.claims import CHECKPOINT, Claim, Figure, FileSaid, Reading, Subject
from prunekit.report.facts.costs import cost_columns, priced, uses
from prunekit.report.facts.metrics import METRICS, plain
from prunekit.report.facts.ratios import set_beside
from prunekit.report.facts.rows import Grouped, group
from prunekit.report.facts.runs import apart
from prunekit.report.facts.summary import not_measured, summary
from prunekit.report.facts.tables import ELSEWHERE, columns, contradictions, decide
from prunekit.report.readers.registry import read_files
from tests.support.report_files import (
    DENSE,
    PRUNED,
    bench,
    candidates,
    edge_bench,
    evaluation,
    result,
    vllm,
    write,
)


def said(*claims: Claim, subjects: tuple[tuple[Subject, str], ...] = ()) -> FileSaid:
    return FileSaid("file", "00", Reading("test", subjects, claims))


def size(subject: Subject, value: float = 1.0, **changes: Any) -> Claim:
    return Claim(subject, CHECKPOINT, "weight_bytes", Figure(value, "exact", files=("file",)), **changes)


def names(grouped: Grouped) -> list[tuple[str, ...]]:
    return [row.names for row in grouped.rows]


def grouped_of(folder: Path, *files: Any) -> Grouped:
    return group(read_files([write(folder / f"file-{number}.json", each) for number, each in enumerate(files)]))


def test_a_fingerprint_makes_one_row_of_several_names() -> None:
    a, b, c = Subject("a", fingerprint="f1"), Subject("b", fingerprint="f1"), Subject("a", fingerprint="f2")
    found = group([said(size(a), size(b), size(c))])
    assert sorted(names(found)) == [("a",), ("a", "b")]
    assert found.warnings == ("2 different models are called a.",)


def test_a_plan_joins_what_knows_no_fingerprint() -> None:
    planned, made = Subject("plan-0.8", plan="p"), Subject("small", fingerprint="f", plan="p")
    found = group([said(size(planned), size(made))])
    assert names(found) == [("plan-0.8", "small")] and found.rows[0].name == "small"


def test_a_bench_joins_the_plan_that_was_measured_before(tmp_path: Path) -> None:
    """candidates knows a plan, eval and bench what was made by it, under whatever name."""
    planned = candidates(tmp_path / "cand")
    plan = hashlib.sha256((tmp_path / "cand" / "plan-0.8.json").read_bytes()).hexdigest()
    timed = bench(0.85)
    timed["pruned"] |= {"name": "m0.8", "fingerprint": PRUNED, "plan_sha256": plan}
    timed["dense"]["fingerprint"] = DENSE
    found = group(read_files([planned, write(tmp_path / "bench.json", timed)]))
    (row,) = [each for each in found.rows if "m0.8" in each.names and each.form == CHECKPOINT]
    assert row.names == ("plan-0.8", "m0.8") and (row.fingerprint, row.plan) == (PRUNED, plan)
    shown = decide(found)
    place = found.rows.index(row)
    assert shown.tpot_ratio.figures[place].value == pytest.approx(0.85)
    assert shown.quality.figures[place].value == 0.08
    assert not found.warnings and sum(each.is_baseline for each in found.rows) == 1
    judged = evaluation("again", fingerprint=PRUNED)
    judged["origin"]["plan_sha256"] = plan
    whole = group(read_files([planned, write(tmp_path / "eval.json", judged)]))
    assert ("plan-0.8", "again") in [each.names for each in whole.rows]


def test_a_plan_that_made_two_models_stands_apart() -> None:
    planned = Subject("plan-0.8", plan="p")
    made = [Subject(name, fingerprint=name, plan="p") for name in ("x", "y")]
    found = group([said(size(planned), *map(size, made))])
    assert len(found.rows) == 3 and "2 models here were made by one plan" in found.warnings[0]


def test_a_name_joins_what_knows_no_more() -> None:
    known, unknown = Subject("small", fingerprint="f"), Subject("small")
    assert names(group([said(size(known), size(unknown))])) == [("small",)]
    other = Subject("small", fingerprint="g")
    found = group([said(size(known), size(unknown), size(other))])
    assert len(found.rows) == 3
    assert found.warnings == (
        "2 different models are called small, so what files say by that name alone stands in a row of its own.",
    )


@given(
    st.lists(
        st.builds(
            Subject,
            st.sampled_from("abc"),
            st.sampled_from([None, True, False]),
            st.sampled_from([None, "f", "g"]),
            st.sampled_from([None, "p", "q"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_row_holds_two_fingerprints(subjects: list[Subject]) -> None:
    found = group([said(*map(size, subjects))])
    assert sum(len(row.claims) for row in found.rows) == len(subjects)
    for row in found.rows:
        assert len({each.subject.fingerprint for each in row.claims} - {None}) <= 1
    assert len({row.letter for row in found.rows}) == len(found.rows)
    # Whoever has a fingerprint stands with all who have it.
    for print_ in ("f", "g"):
        assert sum(any(each.subject.fingerprint == print_ for each in row.claims) for row in found.rows) <= 1


def test_the_baseline_of_one_file_that_another_pruned_is_not_dense() -> None:
    found = group([said(size(Subject("small", True))), said(size(Subject("small", False)))])
    assert [(row.letter, row.dense) for row in found.rows] == [("A", False)]


def test_contradictions_are_said_and_have_no_value(tmp_path: Path) -> None:
    found = grouped_of(tmp_path, evaluation(), evaluation("small", result(added=0.3)))
    (column,) = columns("loss_added", found)
    dense, small = column.figures
    assert (small.value, small.status) == (None, "contradictory")
    assert small.how == "+0.200 (file-0.json) or +0.300 (file-1.json) nats a token"
    assert any(each.startswith("Loss added of small (held.jsonl, 2,048 tokens") for each in contradictions(found))
    assert dense.value == 0.0 and dense.files == ("file-0.json", "file-1.json")


def test_a_measurement_that_was_repeated_is_one(tmp_path: Path) -> None:
    found = grouped_of(tmp_path, evaluation(), evaluation("small", result(added=0.2005)))
    assert columns("loss_added", found)[0].figures[1].value == pytest.approx(0.2)
    assert not contradictions(found)


def test_other_texts_and_other_machines_are_other_columns(tmp_path: Path) -> None:
    other = {"cpu": "Other CPU", "threads": 2, "device": "cpu"}
    tiny = bench(0.5)
    tiny["pruned"]["name"] = "tiny"
    tiny["machine"] = other
    found = grouped_of(tmp_path, evaluation(), evaluation("tiny", result("b.txt"), fingerprint=None), bench(), tiny)
    assert [each.known() for each in columns("loss_added", found)] == [2, 2]
    first, second = columns("tpot_ratio", found)
    assert "Test CPU" in first.setup and "Other CPU" in second.setup
    shown = decide(found).tpot_ratio
    assert [each.how for each in shown.figures if each.value is None] == [ELSEWHERE]


def test_runs_that_disagree_on_the_dense_model_are_not_compared(tmp_path: Path) -> None:
    tiny = bench(0.5, ttft=0.3, tpot=0.03)
    tiny["pruned"]["name"] = "tiny"
    found, warnings = apart(grouped_of(tmp_path, bench(), tiny))
    assert len(warnings) == 1 and "the machine was not in the same state" in warnings[0]
    assert [each.known() for each in columns("tokens_per_second", found)] == [2, 2]
    (ratios,) = columns("tpot_ratio", found)
    assert [each.value for each in ratios.figures] == [1.0, pytest.approx(0.8), pytest.approx(0.5)]
    same, none = apart(grouped_of(tmp_path, bench(), bench(0.81, ttft=0.101, tpot=0.0101)))
    assert not none and not contradictions(same)


def test_an_export_is_a_row_and_has_not_the_quality_of_its_checkpoint(tmp_path: Path) -> None:
    found = grouped_of(tmp_path, evaluation(), bench(), bench(0.7, runtime="onnx", dtype="fp32"))
    titles = [row.title for row in found.rows]
    assert titles == ["dense-model", "dense-model, onnx fp32", "small", "small, onnx fp32"]
    (loss,) = columns("loss_added", found)
    assert loss.figures[3].how == "measured of the checkpoint (B), not of this export"
    # But its times stand beside those of the checkpoint on the same machine.
    (ratio,) = columns("tpot_ratio", found)
    assert [each.value for each in ratio.figures] == [1.0, 1.0, pytest.approx(0.8), pytest.approx(0.7)]


def test_models_of_several_dense_ones_are_told_apart(tmp_path: Path) -> None:
    found = grouped_of(tmp_path, bench(), {**evaluation("tiny", fingerprint=None), "baseline": "other-dense"})
    assert found.warnings == (
        "These files speak of several dense models (dense-model, other-dense). Each model is compared with its own "
        "only.",
    )
    assert [row.letter for row in found.rows] == ["dense", "dense 2", "A", "B"]


def test_what_was_predicted_fills_what_was_not_measured(tmp_path: Path) -> None:
    candidates(tmp_path / "cand")
    small = bench(0.9)
    found = group(read_files([tmp_path / "cand", write(tmp_path / "bench.json", small)]))
    shown = {row.title: each for row, each in zip(found.rows, decide(found).tpot_ratio.figures, strict=True)}
    assert (shown["small"].status, shown["plan-0.8"].status) == ("measured", "predicted")
    assert shown["dense-model, gguf q4_k_m"].value is None


def _edges(name: str, fingerprint: str, seconds: float, **changes: Any) -> Any:
    """What bench.py says of the q8_0 export of a model."""
    made = edge_bench(**changes)
    for phase, median in (("ttft", seconds), ("tpot", seconds / 10)):
        made[phase] |= {"median": median, "p20": median * 0.98, "p80": median * 1.02}
        made[phase]["interval"] = [median * 0.99, median * 1.01]
    return {**made, "export": {**made["export"], "name": name, "fingerprint": fingerprint}}


def test_two_exports_timed_on_a_device_are_set_beside_each_other(tmp_path: Path) -> None:
    dense, small = _edges("dense-model", DENSE, 0.05), _edges("small", PRUNED, 0.04)
    found = set_beside(grouped_of(tmp_path, evaluation(), dense, small))
    shown = decide(found)
    titles = [row.title for row in found.rows]
    assert titles == ["dense-model", "dense-model, gguf q8_0", "small", "small, gguf q8_0"]
    ratio = shown.ttft_ratio.figures[3]
    assert ratio.value == pytest.approx(0.8) and ratio.status == "estimated"
    assert (ratio.low, ratio.high) == (pytest.approx(0.8 * 0.98 / 1.02), pytest.approx(0.8 * 1.02 / 0.98))
    assert "40 ms over the dense model's 50 ms" in ratio.how and "not in turns" in ratio.how
    assert shown.ttft_ratio.figures[1].value == 1.0 and shown.tpot_ratio.figures[3].value == pytest.approx(0.8)
    assert shown.ttft is not None and [each.value for each in shown.ttft.figures] == [None, 0.05, None, 0.04]
    assert [each for each in not_measured(found, shown, []) if each.startswith("First token")] == [
        "First token: of dense, B."
    ]


def test_an_export_that_was_timed_alone_shows_its_time(tmp_path: Path) -> None:
    for number, dense in enumerate(
        [
            None,
            _edges("dense-model", DENSE, 0.05, config={**edge_bench()["config"], "threads": 1}),
            _edges("dense-model", DENSE, 0.05, export={**edge_bench()["export"], "dtype": "q4_k_m"}),
        ]
    ):
        (folder := tmp_path / str(number)).mkdir()
        files = [evaluation(), _edges("small", PRUNED, 0.04), *([] if dense is None else [dense])]
        found = set_beside(grouped_of(folder, *files))
        shown = decide(found)
        place = [row.title for row in found.rows].index("small, gguf q8_0")
        assert shown.ttft_ratio.figures[place].value is None
        assert shown.ttft is not None and shown.ttft.figures[place].value == 0.04
        told = not_measured(found, shown, [])
        letter = found.rows[place].letter
        assert any(
            each.startswith(f"First token, against the dense model's: of {letter}, which was timed alone.")
            for each in told
        )
        assert not any(each.startswith("First token: of no model") for each in told)


def test_of_two_dense_models_neither_is_compared_with(tmp_path: Path) -> None:
    other = {**evaluation("tiny", fingerprint=None), "baseline": "other-dense"}
    other["origin"] = {"fingerprint": "99" * 32, "baseline_fingerprint": "88" * 32}
    files = [_edges("dense-model", DENSE, 0.05), _edges("other-dense", "88" * 32, 0.06), _edges("small", PRUNED, 0.04)]
    found = set_beside(grouped_of(tmp_path, evaluation(), other, *files))
    assert len([row for row in found.rows if row.dense]) == 4
    assert not columns("ttft_ratio", found)


def test_a_ratio_of_runs_in_turns_is_not_estimated_again(tmp_path: Path) -> None:
    turns = bench(0.7, runtime="gguf", dtype="q8_0")
    files = [turns, _edges("dense-model", DENSE, 0.05), _edges("small", PRUNED, 0.04)]
    found = set_beside(grouped_of(tmp_path, evaluation(), *files))
    (ratio,) = columns("ttft_ratio", found)
    assert [each.status for each in ratio.figures if each.value is not None] == ["exact", "measured"]


def test_what_was_predicted_tells_its_own_set_up(tmp_path: Path) -> None:
    candidates(tmp_path / "cand")
    found = group(read_files([tmp_path / "cand", write(tmp_path / "bench.json", bench(0.9))]))
    ratio = decide(found).tpot_ratio
    place = [row.title for row in found.rows].index("plan-0.8")
    assert ratio.setup.startswith("Test CPU, 2 threads, prompt of 128")
    assert ratio.setup_of(place) == "as candidates says, Test CPU, 2 threads"
    assert ratio.setup_of(place - 1) == ratio.setup


def test_the_summary(tmp_path: Path) -> None:
    found = group(read_files([candidates(tmp_path / "cand")]))
    assert summary(found, decide(found)) == (
        "plan-0.8 (row B) is the only model found fine on held.jsonl: the loss rises by 0.08 nats a token on "
        "held.jsonl (95 % interval 0.07 to 0.09), measured; the first token takes 0.82 of the dense model's time, "
        "predicted; each further token takes 0.82 of the dense model's time, predicted; its files are 0.80 of the "
        "dense model's size."
    )
    costly = grouped_of(tmp_path, evaluation())
    assert summary(costly, decide(costly)).startswith(
        "No smaller model was found fine: the nearest to the dense one, small (row A), costs quality on held.jsonl: "
    )
    broken = grouped_of(tmp_path, evaluation("small", result(added=2.0)))
    assert summary(broken, decide(broken)).startswith("Every smaller model that was judged is broken;")
    unjudged = grouped_of(tmp_path, bench())
    assert summary(unjudged, decide(unjudged)).startswith("No file says how good any smaller model is")
    assert any(each.startswith("Loss added: of no model.") for each in not_measured(unjudged, decide(unjudged), []))
    alone = group([said(size(Subject("dense-model", True)))])
    assert summary(alone, decide(alone)).startswith("These files speak of no model but the dense one")


def test_electricity_alone_is_a_cost_of_its_own(tmp_path: Path) -> None:
    prices = Prices(watts=100.0, dollars_per_kwh=0.36, pue=1.5)
    found = priced(grouped_of(tmp_path, bench(0.5, ttft=0.1, tpot=0.01)), prices)
    (cost,) = columns("electricity_per_million", found)
    # 100 W are 100 J a second, in which 33 tokens take 0.42 s; 3.6 MJ cost 0.36 $, times 1.5.
    assert cost.figures[0].value == pytest.approx(1e6 * 100 / (33 / 0.42) / 3.6e6 * 0.36 * 1.5)
    assert cost.figures[0].status == "estimated" and cost in cost_columns(found)
    said = " ".join(not_measured(found, decide(found), [], prices))
    assert "Cost: of no model. Of the prices, no hour is priced: name dollars_per_hour" in said
    assert "It needs --prices" in " ".join(not_measured(found, decide(found), []))


def test_costs(tmp_path: Path) -> None:
    prices = Prices(dollars_per_hour=3.6, watts=100.0, dollars_per_rework=2.0)
    found = priced(grouped_of(tmp_path, bench(0.5, ttft=0.1, tpot=0.01)), prices)
    (cost,) = columns("dollars_per_million", found)
    dense, small = cost.figures
    # $3.6 an hour is $0.001 a second, in which 33 tokens take 0.42 s, or half of it.
    assert dense.value == pytest.approx(1e6 * 0.001 / (33 / 0.42)) and dense.status == "estimated"
    assert small.value == pytest.approx(dense.value / 2)  # type: ignore[operator]
    # The rate of the whole request is worked out from both times.
    rates = [each for row in found.rows for each in row.claims if each.metric == "tokens_per_second"]
    word = {"measured": "as measured", "estimated": "as estimated"}[rates[0].figure.status]
    assert f"output tokens a second {word}" in dense.how
    turned = [
        replace(
            row,
            claims=tuple(
                replace(each, figure=replace(each.figure, status="measured" if "estimated" in word else "estimated"))
                for each in row.claims
            ),
        )
        for row in grouped_of(tmp_path, bench(0.5, ttft=0.1, tpot=0.01)).rows
    ]
    other = {"as measured": "as estimated", "as estimated": "as measured"}[word]
    (cost_of_other,) = columns("dollars_per_million", priced(replace(found, rows=tuple(turned)), prices))
    assert f"output tokens a second {other}" in cost_of_other.figures[0].how
    (energy,) = columns("joules_per_token", found)
    assert energy.figures[0].value == pytest.approx(100 / (33 / 0.42)) and energy.setup.endswith(
        "torch 2.13.0 in float32"
    )
    (rework,) = columns("rework_allowed", found)
    # A request costs 0.00042 and 0.00021 dollars.
    assert rework.figures[1].value == pytest.approx(0.00021 / 2.0) and rework.figures[0].value is None
    assert [each.utilisation for each in uses(cost, prices)] == [1.0, 0.5, 0.3]
    assert uses(cost, prices)[1].dollars[0] == pytest.approx(2 * dense.value)  # type: ignore[operator]
    half = priced(grouped_of(tmp_path, vllm()), Prices(dollars_per_hour=3.6, utilisation=0.5))
    assert columns("dollars_per_million", half)[0].figures[0].value == pytest.approx(2.0)


@given(st.floats(0.01, 100), st.floats(0.0, 3.0))
def test_agreeing_files_give_the_first_figure(value: float, factor: float) -> None:
    first = Claim(Subject("a"), CHECKPOINT, "parameters", Figure(value, "exact", files=("x",)))
    second = Claim(Subject("a"), CHECKPOINT, "parameters", Figure(value * factor, "exact", files=("y",)))
    found = resolved([first, second])
    if abs(factor - 1) < 1e-6:
        assert found.value == value and found.files == ("x", "y")
    elif abs(factor - 1) > 1e-5:
        assert found.value is None and found.status == "contradictory"


def test_a_files_header_is_no_contradiction() -> None:
    """538,060,032 bytes of weights, and the file that holds them; but not another file."""
    sizes = [
        Claim(Subject("a"), CHECKPOINT, "file_bytes", Figure(size, "exact", files=(file,)))
        for size, file in ((538_060_032, "x"), (538_090_408, "y"), (484_238_592, "z"))
    ]
    assert resolved(sizes[:2]).value == 538_060_032 and resolved(sizes).status == "contradictory"


def test_of_two_that_agree_the_believed_one_is_shown() -> None:
    doubted = Figure(1.0, "measured", files=("x",), believed=False)
    first, second = (
        Claim(Subject("a"), CHECKPOINT, "ttft_ratio", each)
        for each in (doubted, Figure(1.01, "measured", files=("y",)))
    )
    assert resolved([first, second]).believed and resolved([first, second]).value == 1.01


def test_rows_that_nobody_judged_are_told(tmp_path: Path) -> None:
    found = grouped_of(tmp_path, evaluation("small", result(added=2.0)), bench())
    said = summary(found, decide(found))
    assert said.startswith("Every smaller model that was judged is broken")


def test_figures_as_they_are_written() -> None:
    assert [plain(each) for each in (0.0, 0.01234, 1.5, 12.34, 123.4, 1234.5, 2e12, -3.0)] == [
        "0",
        "0.0123",
        "1.5",
        "12.3",
        "123",
        "1,234",
        "2.00e+12",
        "-3",
    ]
    for metric in METRICS.values():
        for value in (0.0, -1e300, 1e300, 3, 10**39):
            assert len(metric.write(value)) < 24
