"""Why each layer of a plan is as wide as it is, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group

from prunekit.cli.common import table

if TYPE_CHECKING:
    from prunekit.plan import Plan

_NO_CURVES = "Why each layer is as wide as it is can be told where loss curves decide it, as the default method does."


def why_tables(plan: Plan) -> Group:
    """A row a layer, and what the words rest on; one sentence where the plan has no reasons."""
    why = plan.provenance.get("why")
    if not why:
        return Group(_NO_CURVES)
    made = table("Why each layer is as wide as it is", "layer", "in words", caption=_caption(why))
    made.columns[1].justify = "left"
    for layer in why.get("layers", []):
        made.add_row(str(layer.get("index", "")), str(layer.get("words", "")))
    return Group(made, *(f"Not measured: {text}" for text in why.get("not_measured", [])))


def _caption(why: dict[str, Any]) -> str:
    unit, price = why.get("unit", "the budget"), why.get("shadow_price")
    said = ["mnats: thousandths of a nat a token that the loss is expected to rise."]
    if price is not None:
        said.append(f"One {unit} more, where it helps most, would save {price * 1e3:.2g} mnats.")
    taus = {kind: tau for kind, tau in why.get("kendall_tau", {}).items() if tau is not None}
    if taus:
        order = " and ".join(f"{tau:.2f} ({'FFN' if kind == 'ffn' else kind})" for kind, tau in taus.items())
        said.append(
            f"Measured with one sub-layer cut at a time, on {why.get('sequences', '?')} sequences. If these are drawn "
            f"again by chance, the order of layers agrees with Kendall's tau {order}; 1 is the same order."
        )
    return " ".join(said)
