"""The README.md of a rebuilt checkpoint: what it is, how it was made, how to load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.plan import Plan

if TYPE_CHECKING:
    from prunekit.checkpoint import Written


def model_card(name: str, plan: Plan, written: Written) -> str:
    """Markdown for the folder that ``written`` describes."""
    method = plan.provenance.get("method", {}).get("name", "a plan")
    per_layer = written.architecture.startswith("Pruned")
    load = (
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "# or, without remote code: import prunekit first"
        if per_layer
        else "model = AutoModelForCausalLM.from_pretrained(folder)"
    )
    rows = "\n".join(
        f"| {place} | {layer.index} | {layer.shape.num_attention_heads or 'none'} | "
        f"{layer.shape.num_key_value_heads or 'none'} | {layer.shape.intermediate_size or 'none'} |"
        for place, layer in enumerate(plan.layers)
    )
    padded = (
        "\nEvery layer is padded with zeros to the widest, so that any stock runtime loads it; the table lists the "
        "widths without the padding.\n"
        if written.layout == "uniform"
        else ""
    )
    return f"""# {name}, pruned with prunekit

{method}: {plan.share_of_blocks:.1%} of the decoder blocks' parameters and {plan.share_of_parameters:.1%} of all
parameters are left ({plan.shape.parameters:,} of {plan.source.parameters:,}).
{padded}
```python
from transformers import AutoModelForCausalLM

{load}
```

`plan.json` holds which units were kept and how that was decided; `prunekit inspect` checks the files' hashes.

| layer | from | num_attention_heads | num_key_value_heads | intermediate_size |
|---|---|---|---|---|
{rows}
"""
