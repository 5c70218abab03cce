"""What `prunekit recover` shows: what it will take, how it goes, what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit.cli.common import table
from prunekit.utils.phases.words import in_a_sentence

if TYPE_CHECKING:
    from rich.table import Table

    from prunekit.recovery.training.progress import Estimate
    from prunekit.recovery.training.run import Recovered


def estimate_line(estimate: Estimate) -> str:
    """Time, memory and disk, and how far the model is from the dense one now."""
    time = in_a_sentence(estimate.seconds)
    memory = "" if estimate.memory is None else f", {estimate.memory / 2**30:.1f} GiB of memory"
    where = f" (from step {estimate.steps - estimate.left} on)" if estimate.left < estimate.steps else ""
    kept = ""
    if estimate.teacher != "online":
        what = "last hidden states" if estimate.teacher == "hidden" else "tokens drawn"
        size = estimate.teacher_bytes / 2**30
        kept = f", {size:.2f} GiB of it for the dense model's {what} of text that comes {estimate.times:.1f} times"
    gain = ""
    if estimate.expected_kl is not None:
        gain = (
            f"; by what trainings of SmolLM2-135M brought, about {estimate.expected_kl:.4f} at the end (on other text "
            "half to three quarters of that gain)"
        )
    return (
        f"Training on {estimate.tokens:,} tokens in {estimate.steps:,} steps{where}: about {time} "
        f"({estimate.tokens_per_second:,.0f} tokens/s){memory}, up to {estimate.disk / 2**30:.1f} GiB of disk{kept}. "
        f"KL from the dense model on held-out text now: {estimate.start_kl:.4f}{gain}."
    )


def row_lines(row: dict[str, Any]) -> list[str]:
    """Lines for a held-out measurement, for stages that are planned or begun; none for a step."""
    stage = f"stage {row['stage']}, " if "stage" in row else ""
    if "held_out" in row:
        held = row["held_out"]
        return [f"{stage}step {held['step']}: KL {held['kl']:.4f}, loss {held['loss']:.4f} on held-out text"]
    if "phase" in row:
        return [f"Stage {row['stage']} of {row['of']}: {row['phase']}."] if row["of"] > 1 else []
    return [
        f"Stage {each['stage']}: {each['removed']:.1%} removed in all, then {each['tokens']:,} tokens in "
        f"{each['steps']:,} steps."
        for each in row.get("stages", ())
    ]


def stage_table(made: Recovered) -> Table:
    """What each stage came to."""
    shown = table("Stages", "", "left of blocks", "tokens", "steps", "KL when pruned", "KL when trained", "step taken")
    for each in made.stages:
        stage, kl = each["stage"], each["held_out_kl"]
        shown.add_row(
            str(stage["number"]),
            f"{stage['share_of_blocks']:.2%}",
            f"{each['tokens']:,}",
            f"{each['steps']:,}",
            f"{kl['before']:.4f}",
            f"{kl['after']:.4f}",
            str(each["used_step"]),
        )
    return shown


def curve_table(made: Recovered) -> Table:
    """The held-out measurements."""
    shown = table(
        "Held-out text",
        "step",
        "KL from the dense model",
        "loss",
        caption=f"Written: the weights of step {made.used}, KL {made.after:.4f} as stored; before {made.before:.4f}.",
    )
    for row in made.standing.held_out:
        shown.add_row(str(row["step"]), f"{row['kl']:.4f}", f"{row['loss']:.4f}")
    return shown
