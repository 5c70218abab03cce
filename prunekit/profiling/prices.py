"""What a token and an answer cost: prices from the user's TOML file, and the arithmetic, as pure functions.

All formulas take rates that were measured elsewhere (output tokens or answered requests a second) and give dollars, or
joules. They invent no figure: where a price is missing, what needs it is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.names import nearest
from prunekit.utils.toml_file import read_toml

HOURS_A_YEAR = 8760.0
SECONDS_AN_HOUR = 3600.0
JOULES_A_KWH = 3.6e6
# Shown where the user does not say how much of an hour is used: vendors reckon with 0.3 to 0.6.
UTILISATIONS = (1.0, 0.5, 0.3)
_MOST = 1e12


@dataclass(frozen=True)
class Prices:
    """What the user pays. Every field is a key of the TOML file; None is a price that was not named.

    Rented: ``dollars_per_hour`` of the whole replica (all its GPUs, or the machine). Owned: ``capex_dollars`` and
    ``life_years``, ``upkeep_dollars_per_year`` (space, network, people), and electricity by ``watts`` (drawn by the
    machine on average), ``dollars_per_kwh`` and ``pue``. ``utilisation`` is the share of an hour in which the machine
    answers at the rate that was measured. ``dollars_per_rework`` is what a person costs who mends one wrong answer;
    ``fallback_share`` the share of answers that the dense model is asked again for, where nobody measured it.
    """

    dollars_per_hour: float | None = None
    capex_dollars: float | None = None
    life_years: float | None = None
    upkeep_dollars_per_year: float | None = None
    watts: float | None = None
    dollars_per_kwh: float | None = None
    pue: float | None = None
    utilisation: float | None = None
    dollars_per_rework: float | None = None
    fallback_share: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_number(each.name, getattr(self, each.name))
        owned = [name for name in ("capex_dollars", "upkeep_dollars_per_year") if getattr(self, name) is not None]
        if self.dollars_per_hour is not None and owned:
            raise PrunekitError(
                f"Prices name dollars_per_hour, for a rented machine, and {owned[0]}, for an owned one; keep one of "
                "them."
            )
        if (self.capex_dollars is None) != (self.life_years is None):
            given, other = (
                ("capex_dollars", "life_years") if self.life_years is None else ("life_years", "capex_dollars")
            )
            raise PrunekitError(f"Prices name {given} without {other}; the cost of an hour needs both.")
        if all(getattr(self, name) is None for name in ("dollars_per_hour", "capex_dollars", "dollars_per_kwh")):
            raise PrunekitError(
                "Prices name no cost; give dollars_per_hour, or capex_dollars and life_years, or dollars_per_kwh."
            )

    @classmethod
    def load(cls, path: Path | str) -> Prices:
        """The prices in the TOML file ``path``.

        Raises PrunekitError, in a sentence, where it can't be read, is no TOML, holds a key that is no price (the
        nearest name is told), a value that is no number of its kind, or prices that contradict each other.

        >>> Prices.load("prices.toml").per_million_tokens(900.0)  # doctest: +SKIP
        0.62
        """
        return cls.from_dict(read_toml(Path(path), f"The file of prices {path}", "dollars_per_hour = 1.2"), str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "The prices") -> Prices:
        """Prices by the names of their fields. Raises PrunekitError as :meth:`load` does."""
        known = [each.name for each in fields(cls)]
        for name in data:
            if name not in known:
                raise PrunekitError(
                    f"{where} holds {name[:60]!r}, which is no price{nearest(name, known)}; there are "
                    f"{', '.join(known)}."
                )
        return cls(**data)

    def to_dict(self) -> dict[str, float]:
        """The prices that were named, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def dollars_an_hour(self) -> float | None:
        """H, what the machine costs in an hour, used or not: the rent, else

            H = capex / (life · 8760) + upkeep / 8760 + watts / 1000 · PUE · $/kWh

        None where neither a rent nor a price of the machine is named: electricity alone is not what an hour costs.
        """
        if self.dollars_per_hour is not None:
            return self.dollars_per_hour
        if self.capex_dollars is None or self.life_years is None:
            return None
        machine = self.capex_dollars / (self.life_years * HOURS_A_YEAR)
        return machine + (self.upkeep_dollars_per_year or 0.0) / HOURS_A_YEAR + (self.electricity_an_hour or 0.0)

    @property
    def electricity_an_hour(self) -> float | None:
        """watts / 1000 · PUE · $/kWh; None where a part of it is not named. The PUE is 1 where none is."""
        if self.watts is None or self.dollars_per_kwh is None:
            return None
        return self.watts / 1000 * (self.pue or 1.0) * self.dollars_per_kwh

    @property
    def left_out(self) -> str | None:
        """What the cost of an hour lacks, in a sentence; None where it lacks nothing."""
        if self.dollars_an_hour is None:
            return "no hour is priced: name dollars_per_hour, or capex_dollars and life_years"
        if self.dollars_per_hour is None and self.electricity_an_hour is None:
            return "electricity is left out: name watts and dollars_per_kwh"
        return None

    @property
    def utilisations(self) -> tuple[float, ...]:
        """The shares of an hour that costs are shown for: the user's, else :data:`UTILISATIONS`."""
        return UTILISATIONS if self.utilisation is None else (self.utilisation,)

    def per_million_tokens(self, tokens_per_second: float, utilisation: float | None = None) -> float | None:
        """Dollars a million output tokens: 10⁶ · H / (3600 · R · u), where R is ``tokens_per_second``, output tokens of
        the whole replica, and u ``utilisation`` (default: the user's, else 1). None where no hour is priced."""
        each = self._per(tokens_per_second, utilisation)
        return None if each is None else 1e6 * each

    def per_request(self, requests_per_second: float, utilisation: float | None = None) -> float | None:
        """Dollars an answered request: H / (3600 · G · u), where G is ``requests_per_second``, those that were answered
        as they should be. None where no hour is priced."""
        return self._per(requests_per_second, utilisation)

    def energy_per_million_tokens(self, joules_per_token: float) -> float | None:
        """Dollars of electricity alone for a million tokens: 10⁶ · J / 3.6·10⁶ · PUE · $/kWh. None without
        ``dollars_per_kwh``."""
        if self.dollars_per_kwh is None:
            return None
        return 1e6 * joules_per_token / JOULES_A_KWH * (self.pue or 1.0) * self.dollars_per_kwh

    def _per(self, rate: float, utilisation: float | None) -> float | None:
        share = utilisation if utilisation is not None else (self.utilisation or 1.0)
        hour = self.dollars_an_hour
        return None if hour is None else hour / (SECONDS_AN_HOUR * _rate(rate) * _share("utilisation", share))


def joules_per_token(joules: float, tokens: float) -> float:
    """ΔE / output tokens. ``joules`` are of the window in which ``tokens`` output tokens were made, their prompts
    read in it too."""
    return joules / _rate(tokens)


def per_accepted_answer(
    model: float,
    dense: float = 0.0,
    fallback_share: float = 0.0,
    rework_share: float = 0.0,
    dollars_per_rework: float = 0.0,
) -> float:
    """Dollars an answer that is accepted: c_model + p_fallback · c_dense + p_rework · c_person. ``model`` and ``dense``
    are dollars a request, ``fallback_share`` the share that the dense model answers again, ``rework_share`` the share
    that a person mends."""
    shares = _share("fallback_share", fallback_share, 0.0), _share("rework_share", rework_share, 0.0)
    return model + shares[0] * dense + shares[1] * dollars_per_rework


def allowed_rework(saved_per_request: float, dollars_per_rework: float) -> float:
    """By how much the share of answers that a person mends may rise until nothing is saved:
    Δp = Δ($ a request) / ($ a rework). Never above 1; below 0 where nothing is saved."""
    return min(1.0, saved_per_request / _rate(dollars_per_rework))


def throughput(batch: int, new_tokens: int, ttft: float, tpot: float) -> tuple[float, float]:
    """Output tokens and answered requests a second of ``batch`` prompts at a time, one batch after the other:
    batch · (n + 1) / (ttft + n · tpot), for the first token comes with the prompt; and batch / (ttft + n · tpot).
    Times are in seconds; ``new_tokens``, n, are those behind the first."""
    requests = batch / _rate(ttft + new_tokens * tpot)
    return requests * (new_tokens + 1), requests


def _rate(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise PrunekitError(f"A cost can't be divided by {value!r}; give a number above 0.")
    return value


def _share(name: str, value: float, least: float = math.ulp(0.0)) -> float:
    if not least <= value <= 1:
        raise PrunekitError(f"The share {name} must be {'from' if least == 0 else 'above'} 0 to 1, got {value!r}.")
    return value


def _check_number(name: str, value: Any) -> None:
    """Raises PrunekitError where ``value`` is no number that the price ``name`` can be."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PrunekitError(f"The price {name} takes a number, got {str(value)[:60]!r}; write it without quotes.")
    least, most = {"utilisation": (0.001, 1.0), "pue": (1.0, 10.0), "fallback_share": (0.0, 1.0)}.get(
        name, (0.0, _MOST)
    )
    positive = name in ("life_years", "dollars_per_hour", "capex_dollars")
    if not (least <= value <= most) or (positive and value == 0):
        above = f"above {least:g}" if positive else f"from {least:g}"
        raise PrunekitError(f"The price {name} must be {above} to {most:g}, got {str(value)[:60]}.")
