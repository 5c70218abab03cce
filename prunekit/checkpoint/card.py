"""The model card of a checkpoint or an export: a head that the hub reads, and what a reader must know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.history import PastTraining, trainings
from prunekit.models.origin import Origin
from prunekit.plan import Plan

if TYPE_CHECKING:
    from prunekit.checkpoint.manifest import Written


def card_head(origin: Origin, *, library: str | None, tags: Sequence[str], relation: str) -> str:
    """The YAML head of a card. ``relation`` is the hub's word for what this model is to its base model."""
    from huggingface_hub import ModelCardData

    link = origin.license_link
    if origin.legal_files and not origin.license:
        link = link or next((name for name in origin.legal_files if name.lower().startswith("licen")), None)
    elif link and "://" not in link and link not in origin.legal_files and origin.hub_id:
        # A link into the folder of the source leads nowhere from here.
        link = f"https://huggingface.co/{origin.hub_id}/blob/main/{link}"
    bases = list(origin.bases)
    related: dict[str, Any] = {"base_model_relation": relation} if bases else {}
    data = ModelCardData(
        language=list(origin.language) or None,
        # Left out where nobody has said it.
        license=origin.license,
        license_name=origin.license_name,
        license_link=link,
        library_name=library,
        pipeline_tag="text-generation",
        base_model=bases[0] if len(bases) == 1 else bases or None,
        tags=list(dict.fromkeys([*origin.tags, *tags])),
        **related,
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def licence_text(name: str, origin: Origin, changed: str) -> str:
    """Markdown on the terms of use, and the notice of changes that licences ask for. ``changed`` says what was done."""
    files = ", ".join(f"`{each}`" for each in origin.legal_files)
    if origin.license:
        shown = plain(origin.license_name or origin.license)
        terms = f"The licence of {plain(name)} applies: {shown}."
    elif files:
        terms = f"The licence of {plain(name)} applies, as its files say."
    else:
        terms = (
            f"The licence is not known: {plain(name)} came without a licence file, and its model card names none. Look "
            "up its terms before you use or share this model."
        )
    return f"""## Licence and changes

{terms}{f" Copied from it: {files}." if files else ""}

**Notice of modification**: this is not {plain(name)} as it was published. {changed}
"""


def model_card(name: str, plan: Plan, written: Written, origin: Origin) -> str:
    """Markdown for the folder that ``written`` describes. ``name`` is what was pruned: the dense model."""
    history = trainings(plan)
    # One that brought nothing left the weights as they were.
    trained = [each for each in history if each.used]
    per_layer = written.architecture.startswith("Pruned")
    shown = plain(name)
    head = card_head(
        origin,
        library="transformers",
        tags=("prunekit", "pruned", *(("custom_code",) if per_layer else ())),
        relation="finetune",
    )
    load = (
        'model = AutoModelForCausalLM.from_pretrained("this-folder", trust_remote_code=True)\n'
        "# or, without remote code: import prunekit first\n"
        "# the tokenizer is data: no code of this folder is needed for it\n"
        'tokenizer = AutoTokenizer.from_pretrained("this-folder", trust_remote_code=False)'
        if per_layer
        else 'model = AutoModelForCausalLM.from_pretrained("this-folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")'
    )
    padded = (
        "\nEvery layer is padded with zeros to the widest, so that any stock runtime loads it; the widths above are "
        "without the padding.\n"
        if written.layout == "uniform"
        else ""
    )
    changed = "prunekit removed attention heads, FFN channels or layers, and may have fitted the weights that are left."
    if trained:
        toward = ", ".join(dict.fromkeys(plain(each.teacher) for each in trained if each.teacher)) or "the dense model"
        changed += f" Then it trained them toward the predictions of {toward}."
    return f"""{head}
# {shown}, pruned{" and trained" if trained else ""} with prunekit

{shown} with {plan.share_of_blocks:.1%} of the decoder blocks' parameters and {plan.share_of_parameters:.1%} of all
parameters left: {plan.shape.parameters:,} of {plan.source.parameters:,}. {widths(plan)}
{padded}
| | |
|---|---|
{_rows(plan, history)}
| stored | {written.parameters:,} parameters, {written.weight_bytes:,} bytes |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

{load}
```

`plan.json` holds which units every layer keeps and how that was decided; `prunekit inspect` shows the widths of all
layers and checks the files' hashes.

{licence_text(name, origin, changed)}"""


def widths(plan: Plan) -> str:
    """The widths of all layers in a sentence or two."""
    shapes = plan.shape.layers
    parts = (
        ("query heads", [shape.num_attention_heads for shape in shapes]),
        ("KV heads", [shape.num_key_value_heads for shape in shapes]),
        ("FFN channels", [shape.intermediate_size for shape in shapes]),
    )
    said = ", ".join(
        f"{min(counts):,} {what}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,} {what}"
        for what, counts in parts
    )
    dropped = (
        f" {len(plan.dropped_layers)} of {len(plan.source.layers)} layers were dropped." if plan.dropped_layers else ""
    )
    return f"Its {len(shapes)} layers have {said}.{dropped}"


def _rows(plan: Plan, history: Sequence[PastTraining]) -> str:
    """How it was made, as rows of a table; what the plan doesn't say has no row."""
    said = plan.provenance
    method, target, calibration = (_object(said.get(key)) for key in ("method", "target", "calibration"))
    settings = "; ".join(
        f"{plain(key)}: {plain(value)}"
        for key, value in method.items()
        if key != "name" and isinstance(value, (str, int, float, list))
    )
    rows = {
        "method": f"{plain(method['name'])}{f' ({settings})' if settings else ''}" if method.get("name") else None,
        "target": plain(target["asked"]) if target.get("asked") else None,
        "calibration": _calibration(calibration),
        "after pruning": ", ".join(key for key in ("refit", "rescale") if said.get(key)) or None,
        "seed": plain(said["seed"]) if isinstance(said.get("seed"), int) else None,
    }
    said_rows = [f"| {key} | {value} |" for key, value in rows.items() if value]
    return "\n".join([*said_rows, *(f"| training | {plain(each.words())} |" for each in history)])


def _calibration(said: dict[str, Any]) -> str | None:
    if not said.get("source"):
        return None
    size = f", {said['sequences']} x {said['length']} tokens" if {"sequences", "length"} <= set(said) else ""
    return plain(f"{said['source']}{size}")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def plain(value: Any, limit: int = 300) -> str:
    """A foreign string as text in Markdown: on one line, with nothing that makes markup of it."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join("".join(char if char.isprintable() else " " for char in text[: 2 * limit]).split())
    text = text if len(text) <= limit else text[:limit] + " …"
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)
