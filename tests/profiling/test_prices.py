"""Prices of a file, and the sums that are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import (
    Prices,
    allowed_rework,
    joules_per_token,
    per_accepted_answer,
    throughput,
)
from prunekit.utils import toml_file

pytest.importorskip("tomllib")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "prices.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_rented_machine(tmp_path: Path) -> None:
    prices = Prices.load(written(tmp_path, "# a GPU\ndollars_per_hour = 3.6\nutilisation = 0.5\n"))
    assert prices.dollars_an_hour == 3.6 and prices.left_out is None and prices.utilisations == (0.5,)
    # 3.6 $/h are 0.001 $/s: at 1,000 tokens a second in half of the time, 2 $ a million.
    assert prices.per_million_tokens(1000) == pytest.approx(2.0)
    assert prices.per_million_tokens(1000, 1.0) == pytest.approx(1.0)
    assert prices.per_request(4) == pytest.approx(0.0005)
    assert prices.energy_per_million_tokens(2.0) is None
    assert prices.to_dict() == {"dollars_per_hour": 3.6, "utilisation": 0.5}


def test_an_owned_machine(tmp_path: Path) -> None:
    machine = "capex_dollars = 8760\nlife_years = 2\nupkeep_dollars_per_year = 876\n"
    text = machine + "watts = 500\ndollars_per_kwh = 0.2\npue = 1.5"
    prices = Prices.load(written(tmp_path, text))
    # 0.5 of the machine, 0.1 of upkeep, 0.5 kW · 1.5 · 0.2 of electricity.
    assert prices.electricity_an_hour == pytest.approx(0.15)
    assert prices.dollars_an_hour == pytest.approx(0.75)
    # A joule a token is 1/3.6 kWh a million.
    assert prices.energy_per_million_tokens(1.0) == pytest.approx(0.2 * 1.5 / 3.6)
    assert prices.utilisations == (1.0, 0.5, 0.3)


def test_what_is_not_named_is_not_invented() -> None:
    machine = Prices(capex_dollars=8760, life_years=1)
    assert machine.dollars_an_hour == 1.0
    assert machine.left_out == "electricity is left out: name watts and dollars_per_kwh"
    power = Prices(dollars_per_kwh=0.36)
    assert power.dollars_an_hour is None and power.per_million_tokens(10) is None and power.per_request(1) is None
    assert power.energy_per_million_tokens(10) == pytest.approx(1.0)
    assert "no hour is priced" in (power.left_out or "")


def test_energy_answers_and_rework() -> None:
    assert joules_per_token(50, 200) == 0.25
    assert per_accepted_answer(0.001, dense=0.002, fallback_share=0.5) == pytest.approx(0.002)
    assert per_accepted_answer(0.001, rework_share=0.01, dollars_per_rework=1.0) == pytest.approx(0.011)
    # Half a thousandth of a dollar allows 0.05 percentage points more of a dollar's work.
    assert allowed_rework(0.0005, 1.0) == pytest.approx(0.0005)
    assert allowed_rework(-0.1, 1.0) == pytest.approx(-0.1) and allowed_rework(5, 1) == 1.0
    # Two prompts, each a first token after 1 s and three more of half a second.
    assert throughput(2, 3, 1.0, 0.5) == (pytest.approx(2 * 4 / 2.5), pytest.approx(2 / 2.5))


@given(hour=st.floats(1e-3, 1e3), rate=st.floats(1e-2, 1e6), share=st.floats(0.01, 1.0), tokens=st.integers(1, 10_000))
def test_a_requests_cost_is_that_of_its_tokens(hour: float, rate: float, share: float, tokens: int) -> None:
    prices = Prices(dollars_per_hour=hour, utilisation=share)
    by_tokens = prices.per_million_tokens(rate)
    by_requests = prices.per_request(rate / tokens)
    assert by_tokens is not None and by_requests is not None
    assert by_requests == pytest.approx(by_tokens * tokens / 1e6)
    assert by_tokens == pytest.approx(prices.per_million_tokens(rate, 1.0) / share)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dollar_per_hour = 1", "'dollar_per_hour', which is no price .did you mean 'dollars_per_hour'"),
        ('dollars_per_hour = "1.2"', "dollars_per_hour takes a number, got '1.2'; write it without quotes"),
        ("dollars_per_hour = true", "takes a number"),
        ("dollars_per_hour = nan", "dollars_per_hour must be above 0"),
        ("dollars_per_hour = inf", "dollars_per_hour must be above 0"),
        ("dollars_per_hour = 0", "must be above 0"),
        ("dollars_per_kwh = -0.1", "must be from 0"),
        ("dollars_per_hour = 1\nutilisation = 60", r"utilisation must be from 0\.001 to 1, got 60"),
        ("dollars_per_hour = 1\npue = 0.9", "pue must be from 1 to 10"),
        ("dollars_per_hour = 1" + "0" * 400, "dollars_per_hour must be above 0"),
        ("dollars_per_hour = 1\ncapex_dollars = 2\nlife_years = 3", "rented machine, and capex_dollars"),
        ("capex_dollars = 2", "capex_dollars without life_years"),
        ("life_years = 2\ndollars_per_kwh = 1", "life_years without capex_dollars"),
        ("", "name no cost"),
        ("utilisation = 0.5", "name no cost"),
        ("[gpu]\ndollars_per_hour = 1", "'gpu', which is no price"),
        ("dollars_per_hour = {a = 1}", "takes a number"),
        ("dollars_per_hour 1", "not valid TOML"),
        ("dollars_per_hour = 1\ndollars_per_hour = 2", "not valid TOML"),
        ("x = " + "[" * 5000, "nested too deep|not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        ("#" * 300_000, "not valid TOML"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(PrunekitError, match=said) as error:
        Prices.load(written(tmp_path, text))
    assert len(str(error.value)) < 500


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match="does not exist"):
        Prices.load(tmp_path / "no.toml")
    with pytest.raises(PrunekitError, match="is a folder"):
        Prices.load(tmp_path)


def test_an_old_python_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(toml_file, "import_module", missing)
    with pytest.raises(PrunekitError, match=r"Python 3\.11 or newer, or the package tomli"):
        Prices.load(written(tmp_path, "dollars_per_hour = 1"))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_are_none(value: float) -> None:
    prices = Prices(dollars_per_hour=1)
    with pytest.raises(PrunekitError, match="can't be divided by"):
        prices.per_million_tokens(value)
    with pytest.raises(PrunekitError, match="can't be divided by"):
        joules_per_token(1, value)
    with pytest.raises(PrunekitError, match="share utilisation must be above 0 to 1"):
        prices.per_request(1, 1.5)
