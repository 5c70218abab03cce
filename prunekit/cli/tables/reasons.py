"""Why each layer of a plan is as wide as it is, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group

from prunekit.cli.common import table
from prunekit.utils.names import printable

if TYPE_CHECKING:
    from prunekit.plan import Plan

_NO_CURVES = "Why each layer is as wide as it is can be told where loss curves decide it, as the default method does."


_KINDS = ("ffn", "attention")


def why_tables(plan: Plan) -> Group:
    """A row a layer with what its FFN and its heads are worth, and what the figures mean; one sentence where the plan
    has no reasons."""
    why = plan.provenance.get("why")
    if not why:
        return Group(_NO_CURVES)
    columns = ["layer", "FFN", "−1", "+1", "without", "rank", "heads", "−1", "+1", "without", "rank"]
    layers = why.get("layers", [])
    pays = [" ".join(dict.fromkeys(filter(None, (_pays(layer.get(kind, {})) for kind in _KINDS)))) for layer in layers]
    made = table(
        "Why each layer is as wide as it is", *columns, *["pays most"] * any(pays), caption=_caption(why, pays)
    )
    for layer, text in zip(layers, pays, strict=True):
        cells = (cell for kind in _KINDS for cell in _cells(layer.get(kind, {})))
        made.add_row(str(layer.get("index", "")), *cells, *[text] * any(pays))
    return Group(made, *(f"Not measured: {text}" for text in why.get("not_measured", [])))


def _cells(reason: dict[str, Any]) -> tuple[str, ...]:
    kept = reason.get("kept")
    width = "–" if kept is None else f"{kept[0] * kept[1]}" if isinstance(kept, list) else f"{kept:,}"
    low, high = reason.get("rank_low"), reason.get("rank_high")
    rank = "" if reason.get("rank") is None else str(reason["rank"])
    sure = "" if low == high else f" ({low}-{high})"
    prices = (_thousandths(reason.get(name)) for name in ("narrower", "wider"))
    return width, *prices, _without(reason), rank + sure


def _without(reason: dict[str, Any]) -> str:
    """What is lost without it; nothing of what is gone already, or of plans that don't say how far it may go."""
    lost, least = reason.get("loss_without"), reason.get("least")
    if lost is None or least is None or least == reason.get("kept"):
        return "–"
    return f"{'' if reason.get('without_measured') else '≈'}{_thousandths(lost)}"


def _thousandths(price: float | None) -> str:
    if price is None:
        return "–"
    return f"{1e3 * price:,.0f}" if abs(price) >= 0.1 else f"{1e3 * price:.1f}"


def _pays(reason: dict[str, Any]) -> str:
    # Plans of before name none: they told it by a ratio alone, of however few sequences.
    name = str(reason.get("pays_most") or "")
    text, _, group = name.partition(": ")
    # Where all are groups of one text, its name says nothing.
    if group and all(str(other).startswith(f"{text}: ") for other in reason.get("texts") or ()):
        name = group
    return printable(name)


def _caption(why: dict[str, Any], pays: list[str]) -> str:
    unit, price = why.get("unit", "the budget"), why.get("shadow_price")
    said = [f"−1, +1: what one {unit} less would cost there, and one more save, in thousandths of a nat a token."]
    if price is not None:
        said.append(f"At best one more saves {_thousandths(price)}; what is dearer to cut than that stays whole.")
    said.append(
        "Without: what it would cost if that FFN went, or all heads but the fewest that the curve has; ≈ by the curve, "
        "else measured."
    )
    taus = {kind: tau for kind, tau in why.get("kendall_tau", {}).items() if tau is not None}
    if taus:
        order = " and ".join(f"{tau:.2f} ({'FFN' if kind == 'ffn' else 'heads'})" for kind, tau in taus.items())
        said.append(
            f"Rank (1 loses most): measured with that sub-layer alone cut, on {why.get('sequences', '?')} sequences, "
            f"and the ranks that nine of ten draws of them would give. The order agrees with that of such draws by "
            f"Kendall's tau {order}; 1 is the same order."
        )
    if any(pays):
        # Here, for it brings torch, which a command's help does without.
        from prunekit.pruning.reasons import PAYS_MORE, SURE

        said.append(
            f"Pays most: the text on which that cut costs {PAYS_MORE} times the mean of all or more, and more than on "
            f"the others by over {SURE:g} standard errors."
        )
    return " ".join(said)
