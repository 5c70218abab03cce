"""What a training is expected to bring."""

from __future__ import annotations

import pytest

from prunekit.plan.training import TrainingConfig
from prunekit.recovery.expected import MEASURED, expected_kl

TRAINED = 10_000_000


def test_measured_trainings_are_met_and_more_text_brings_more() -> None:
    for amount, left in MEASURED:
        assert expected_kl(0.5, round(amount * TRAINED), TRAINED, TrainingConfig()) == pytest.approx(0.5 * left)
    assert [amount for amount, _ in MEASURED] == sorted(amount for amount, _ in MEASURED)
    found = [
        expected_kl(1.0, tokens, TRAINED, TrainingConfig()) for tokens in (0, 10, 10**3, 10**4, 2 * 10**4, 5 * 10**4)
    ]
    assert found[0] == 1.0 and found == sorted(found, reverse=True) and len(set(found)) == len(found)


def test_what_was_not_measured_is_not_promised() -> None:
    longest = expected_kl(1.0, 10**12, TRAINED, TrainingConfig())
    assert longest == MEASURED[-1][1]
    for config in (TrainingConfig(ce_share=0.2), TrainingConfig(lora=8)):
        assert expected_kl(1.0, 10**4, TRAINED, config) is None


def test_the_batch_is_settled_by_the_device_unless_it_is_said() -> None:
    assert TrainingConfig().on("cpu").batch_tokens == 512
    assert TrainingConfig().on("cuda").batch_tokens == TrainingConfig().on("mps").batch_tokens == 2048
    assert TrainingConfig(batch_tokens=64).on("cpu") == TrainingConfig(batch_tokens=64)
