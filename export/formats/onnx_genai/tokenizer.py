"""Whether onnxruntime-genai's own tokenizer, which reads the same files, splits texts as transformers' does."""

from __future__ import annotations

from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.export.target import Job
from prunekit.utils.quiet import reason

_LINES = 300
ODD = (
    "  two spaces, and a tab\there",
    "12345 67 8.90 1,000,000",
    "naïve café, Ünïcödé, 中文字符, עברית, русский",
    "🙂🙃 👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "it's they'll WE'RE don't",
    "trailing spaces   ",
)


def note(job: Job, folder: Path) -> str | None:
    """A sentence where the tokenizer in ``folder`` can't be loaded there, or gives other ids; None where all agree, or
    the checkpoint has no tokenizer to compare with."""
    import onnxruntime_genai as og

    from prunekit.utils.prose import builtin_documents

    try:
        theirs = job.tokenizer
    except PrunekitError:
        return None
    advice = "tokenise with transformers and give the ids to append_tokens"
    lines = [line for text in builtin_documents("evaluation") for line in text.split("\n") if line.strip()]
    lines = [*lines[:_LINES], *ODD]
    try:
        # Of the config alone: the graph may be for a GPU.
        ours = og.Tokenizer(og.Config(str(folder)))
        different = [line for line in lines if list(ours.encode(line)) != theirs(line)["input_ids"]]
    except Exception as error:  # its errors are bare RuntimeErrors
        return f"onnxruntime-genai can't use this tokenizer ({reason(error)}): {advice}."
    if not different:
        return None
    return (
        f"onnxruntime-genai's tokenizer gives other tokens than transformers' on {len(different)} of {len(lines)} "
        f"lines, such as {different[0][:40]!r}: {advice}."
    )
