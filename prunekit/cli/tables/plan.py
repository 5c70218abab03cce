"""Plans and shapes as tables for people and as JSON for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from prunekit.cli.common import table
from prunekit.plan.budgets import LATENCY, PARAMETERS

if TYPE_CHECKING:
    from prunekit.plan import Plan
    from prunekit.plan.shape import ModelShape


def costs(shape: ModelShape, bytes_per_parameter: float) -> dict[str, int]:
    """What a shape costs, in the units the names say; KV cache at the weights' precision."""
    return {
        "parameters": shape.parameters,
        "block_parameters": shape.block_parameters,
        "flops_per_token": shape.flops_per_token(),
        "weight_bytes": shape.weight_bytes(bytes_per_parameter),
        "kv_bytes_per_token": shape.kv_bytes_per_token(bytes_per_parameter),
        "num_hidden_layers": shape.num_hidden_layers,
    }


def plan_summary(plan: Plan, bytes_per_parameter: float) -> dict[str, Any]:
    """A plan for machines: costs before and after, both shares, every layer's widths."""
    return {
        "share_of_blocks": plan.share_of_blocks,
        "share_of_parameters": plan.share_of_parameters,
        "dense": costs(plan.source, bytes_per_parameter),
        "pruned": costs(plan.shape, bytes_per_parameter),
        "dropped_layers": list(plan.dropped_layers),
        "layers": [
            {
                "index": layer.index,
                "num_attention_heads": layer.shape.num_attention_heads,
                "num_key_value_heads": layer.shape.num_key_value_heads,
                "intermediate_size": layer.shape.intermediate_size,
            }
            for layer in plan.layers
        ],
        "target": plan.provenance.get("target"),
        "method": plan.provenance.get("method"),
        **{name: plan.provenance[name] for name in ("compensation", "computed_on", "why") if name in plan.provenance},
    }


def plan_tables(plan: Plan, bytes_per_parameter: float) -> Group:
    """A plan for people."""
    return Group(_cost_table(plan, bytes_per_parameter), *_target_table(plan), _width_table(plan), *_notes(plan))


def _notes(plan: Plan) -> list[str]:
    """Whole sentences on what no table shows."""
    notes = []
    said = plan.provenance.get("compensation")
    if isinstance(said, dict) and "without" in said:
        notes.append(str(said["without"]))
    if "computed_on" in plan.provenance:
        notes.append(
            "The model's own part of the calibration text is not what the plan was made with: another kind of machine, "
            "or another version of PyTorch, writes other text. The units are the plan's, their weights differ a little."
        )
    if plan.shape.hidden_size != plan.source.hidden_size:
        notes.append(f"Hidden states have {plan.shape.hidden_size} of {plan.source.hidden_size} channels.")
    return notes


def _cost_table(plan: Plan, bytes_per_parameter: float) -> Table:
    dense, pruned = costs(plan.source, bytes_per_parameter), costs(plan.shape, bytes_per_parameter)
    made = table("What it costs", "", "dense", "pruned", "left")
    names = {
        "parameters": "parameters, all",
        "block_parameters": "parameters, decoder blocks",
        "flops_per_token": "FLOPs a token (no context)",
        "weight_bytes": "weight bytes",
        "kv_bytes_per_token": "KV-cache bytes a token",
        "num_hidden_layers": "layers",
    }
    for key, label in names.items():
        made.add_row(label, f"{dense[key]:,}", f"{pruned[key]:,}", f"{pruned[key] / dense[key]:.2%}")
    return made


def _target_table(plan: Plan) -> list[Table]:
    """What was asked and what came of it; nothing where a parameter count, which the costs tell, is all."""
    made = table("Targets", "", "dense", "at most", "pruned", "left")
    try:
        budgets = plan.provenance["target"]["budgets"]
        for each in budgets:
            dense, limit, pruned = each["dense"], each["at_most"], each["pruned"]
            values = [f"{x * 1e3:,.3f} ms" if each["cost"] == LATENCY else f"{x:,}" for x in (dense, limit, pruned)]
            made.add_row(str(each["asked"]), *values, f"{pruned / dense:.2%}")
        return [made] if {each["cost"] for each in budgets} - {PARAMETERS} else []
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        # Written by something else, or before there were several.
        return []


def _width_table(plan: Plan) -> Table:
    caption = None
    if plan.dropped_layers:
        caption = "Dropped layers: " + ", ".join(map(str, plan.dropped_layers))
    made = table("Widths", "layer", "query heads", "KV heads", "FFN width", "", caption=caption)
    made.columns[-1].justify = "left"
    for layer in plan.layers:
        dense, shape = plan.source.layers[layer.index], layer.shape
        share = shape.intermediate_size / dense.intermediate_size
        made.add_row(
            str(layer.index),
            _change(shape.num_attention_heads, dense.num_attention_heads),
            _change(shape.num_key_value_heads, dense.num_key_value_heads),
            _change(shape.intermediate_size, dense.intermediate_size),
            bar(share),
        )
    return made


def _change(now: int, dense: int) -> str:
    return f"{now}" if now == dense else f"{now or 'none'} of {dense}"


def bar(share: float, width: int = 24) -> str:
    """A share as a bar of text."""
    full = round(max(0.0, min(share, 1.0)) * width)
    return "█" * full + "·" * (width - full)
