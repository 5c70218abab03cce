from __future__ import annotations

import pytest

from prunekit.errors import PrunekitError
from prunekit.plan.training import TrainingConfig, training_of
from prunekit.recovery.training.schedule import rate


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_the_rate_rises_then_falls_and_is_never_zero(schedule: str) -> None:
    config = TrainingConfig(learning_rate=1.0, schedule=schedule, warmup=0.1, decay=0.2)
    rates = [rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.06
    if schedule == "wsd":
        assert rates[10:81] == [1.0] * 71


def test_a_single_step_has_a_rate() -> None:
    assert 0 < rate(TrainingConfig(), 0, 1) <= TrainingConfig().learning_rate


def test_settings_are_checked_by_name_type_and_value() -> None:
    config, text = training_of("a.txt", 3, {"learning_rate": 2e-4, "text_length": 64, "schedule": "wsd"})
    assert (config.learning_rate, config.schedule) == (2e-4, "wsd")
    assert (text.source, text.length, text.seed) == ("a.txt", 64, 3)
    for told, sentence in (
        ({"learning_rat": 1e-4}, "did you mean"),
        ({"learning_rate": "fast"}, "takes a number"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"schedule": "square"}, "one of linear, cosine, wsd"),
        ({"lora": 8, "train": "all"}, "leave out"),
        ({"ce_share": 1.5}, "between 0 and 1"),
    ):
        with pytest.raises(PrunekitError, match=sentence):
            training_of(None, None, told)
