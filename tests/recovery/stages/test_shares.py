"""How many stages there are, and what each gets of the training."""

from __future__ import annotations

import pytest

from prunekit.errors import PrunekitError
from prunekit.plan.recipe import knobs
from prunekit.plan.training import LOOPS, StagesConfig, TrainingConfig, recovery_knobs, recovery_of
from prunekit.recovery.stages.shares import average_work, check_stages, spans, stage_count, token_shares
from prunekit.recovery.training.schedule import Span, rate


@pytest.mark.parametrize(
    ("removed", "tokens", "count"),
    [
        (0.2, 10**9, 1),
        (0.25, 10**9, 1),
        (0.26, 10**9, 4),
        (0.395, 10**9, 6),
        (0.7, 10**9, 10),
        (0.25, 10**6, 1),
        (0.395, 10**6, 3),
    ],
)
def test_so_many_stages_as_suit_what_goes_and_the_tokens(removed: float, tokens: int, count: int) -> None:
    assert stage_count(removed, tokens, StagesConfig()) == count


def test_the_papers_loop_always_takes_turns() -> None:
    turns = LOOPS["adapt-accel"].stages
    assert stage_count(0.2, 1000, turns) == 4 and stage_count(0.03, 1000, turns) == 1
    assert token_shares(20, turns)[0] == pytest.approx(2 / 420) and token_shares(20, turns)[-1] == pytest.approx(2 / 21)


def test_tokens_rise_from_stage_to_stage_and_the_last_one_has_enough() -> None:
    assert token_shares(3, StagesConfig()) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    six = token_shares(6, StagesConfig())
    assert six[-1] == 0.35 and sum(six) == pytest.approx(1)
    assert six[1] / six[0] == pytest.approx(2) and six[4] / six[0] == pytest.approx(5)
    assert token_shares(4, StagesConfig(shares="equal", last_share=0.0)) == [0.25] * 4
    assert token_shares(1, StagesConfig()) == [1.0]


@pytest.mark.parametrize(("steps", "stages"), [(1000, 6), (7, 6), (6, 6), (2, 6), (100, 1)])
def test_every_stage_has_steps_and_all_follow_each_other(steps: int, stages: int) -> None:
    made = spans(steps, token_shares(stages, StagesConfig()), StagesConfig())
    assert len(made) == stages and all(span.steps >= 1 for span in made)
    assert [span.offset for span in made] == [sum(each.steps for each in made[:place]) for place in range(stages)]
    assert {span.whole for span in made} == {sum(span.steps for span in made)} == {max(steps, stages)}


def test_the_rate_rises_again_after_a_cut_and_is_the_schedules_then() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup=0.0)
    first, second = spans(100, [0.5, 0.5], StagesConfig(rewarm=0.1))
    assert (first.rewarm, second.rewarm) == (0, 5)
    assert [first.rate(config, step) for step in range(50)] == [rate(config, step, 100) for step in range(50)]
    assert [second.rate(config, step) for step in range(5)] == pytest.approx(
        [rate(config, 50 + step, 100) * (step + 1) / 6 for step in range(5)]
    )
    assert [second.rate(config, step) for step in range(5, 50)] == [
        rate(config, 50 + step, 100) for step in range(5, 50)
    ]
    assert Span(10).rate(config, 3) == rate(config, 3, 10)


def test_what_is_pruned_trains_faster() -> None:
    assert average_work(0.0, [1.0], [1.0]) == 1
    assert average_work(0.4, [0.5, 1.0], [0.25, 0.75]) == pytest.approx(0.25 * 0.85 + 0.75 * 0.7)


def test_settings_are_the_loops_where_nobody_says_otherwise() -> None:
    training, text, turns = recovery_of("a.txt", 5, {"batch_tokens": 64, "text_length": 8}, "adapt-accel")
    paper = LOOPS["adapt-accel"]
    assert training == TrainingConfig(**{**vars(paper.training), "batch_tokens": 64})
    assert turns == paper.stages and (text.source, text.seed, text.length) == ("a.txt", 5, 8)
    assert (training.learning_rate, training.ce_share, training.train, training.schedule) == (2e-5, 1.0, "all", "wsd")
    assert recovery_of(None, None, {"moments": "fresh"})[2] == StagesConfig(moments="fresh")


def test_no_setting_has_two_meanings() -> None:
    assert not set(knobs()) & set(recovery_knobs())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"moments": "old"}, "one of sliced, fresh"),
        ({"shares": "cosine"}, "one of linear, equal"),
        ({"rewarm": 1.0}, "below 1"),
        ({"last_share": -0.1}, "at least 0"),
        ({"momentz": "fresh"}, "did you mean 'moments'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(PrunekitError, match=said):
        recovery_of(None, None, settings)


@pytest.mark.parametrize("stages", [0, -1, 1001])
def test_there_are_not_so_many_stages(stages: int) -> None:
    with pytest.raises(PrunekitError, match="between 1 and 1000"):
        check_stages(stages)
