"""Conversations as the text that a model's chat template makes of them, rendered in a child process with limits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from prunekit.data.chats import Message
from prunekit.data.sources import join_messages
from prunekit.errors import PrunekitError
from prunekit.utils.process.child import Limits, run_python
from prunekit.utils.quiet import reason

# Far beyond what any template needs: the largest take milliseconds and a few MB. The CPU's time is what counts, since a
# busy machine may let the child wait; half a second of it is what the child needs to begin.
_SECONDS = 4
_CHATS_A_SECOND = 250
_WAIT = 120.0
_MEMORY = 2 << 30
_OUTPUT = 128 << 20
_LONGEST = 1 << 20
_log = logging.getLogger("prunekit")
# Libraries of numpy reserve address space for each thread.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def chat_template(tokenizer: Any) -> str | None:
    """The template that ``tokenizer`` renders conversations by: its only one, or the one named default; None where it
    has none. Raises PrunekitError where there are several without a default, or it is no text."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    if isinstance(template, dict):
        if "default" not in template:
            raise PrunekitError(
                f"This model has several chat templates ({', '.join(map(str, sorted(template)))}) and none that is "
                "named default; set one as chat_template in its tokenizer_config.json."
            )
        template = template["default"]
    if not isinstance(template, str):
        raise PrunekitError("This model's chat template is no text; copy the original model's tokenizer files over it.")
    if len(template) > _LONGEST:
        raise PrunekitError(
            f"This model's chat template has {len(template):,} characters, and at most {_LONGEST:,} are rendered; copy "
            "the original model's tokenizer files over it."
        )
    return template


class Chats:
    """Makes texts of chats as :func:`prunekit.data.sources.pieces` asks for it: by the tokenizer's template, or as
    plain text where it has none. Remembers whether there were any."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._seen = False

    def __call__(self, chats: list[list[Message]]) -> list[str | PrunekitError]:
        template = chat_template(self._tokenizer)
        if template is None and not self._seen:
            _log.warning("This model has no chat template, so the messages of each chat are joined by empty lines.")
        self._seen = True
        return join_messages(chats) if template is None else render_chats(self._tokenizer, chats)

    def describe(self) -> dict[str, Any]:
        """Provenance: the hex SHA-256 of the template that chats went through, None where there was none."""
        if not self._seen:
            return {}
        template = chat_template(self._tokenizer)
        digest = None if template is None else hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()
        return {"chat_template": digest}


def render_chats(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], *, generation: bool = False
) -> list[str | PrunekitError]:
    """Each conversation as text, exactly as ``tokenizer.apply_chat_template(..., tokenize=False)`` makes it, with the
    words that begin an answer where ``generation``; or the error that the template raised for it, as one sentence.

    The template runs in a child that may take 4 seconds of a CPU and 4 ms more for each conversation, 2 GiB and 128 MiB
    of output. Raises PrunekitError where it takes more, or there is no template.
    """
    template = chat_template(tokenizer)
    if template is None:
        raise PrunekitError("This model's tokenizer has no chat template.")
    asked = {
        "template": template,
        "variables": dict(tokenizer.special_tokens_map),
        "generation": generation,
        "conversations": [list(map(dict, messages)) for messages in conversations],
    }
    seconds = _SECONDS + len(conversations) // _CHATS_A_SECOND
    try:
        ended = run_python(
            module="prunekit.data.chat_child",
            input=json.dumps(asked),
            timeout=_WAIT,
            limits=Limits(memory_bytes=_MEMORY, cpu_seconds=seconds, output_bytes=_OUTPUT, file_bytes=0),
            variables=_ONE_THREAD,
        )
    except OSError as error:
        raise PrunekitError(f"No process could be started for the chat template: {error.strerror or error}.") from None
    if not ended.ok:
        raise PrunekitError(
            f"This model's chat template could not be rendered ({_short(ended.reason)}); it may loop or grow without "
            "end. Copy the original model's chat template over it, or do without."
        )
    return [_made(json.loads(line)) for line in ended.out.splitlines()]


def _made(said: dict[str, str]) -> str | PrunekitError:
    if "text" in said:
        # JSON can spell a lone surrogate, which is no character and can't be encoded.
        return said["text"].encode("utf-8", "replace").decode()
    return PrunekitError(f"This model's chat template refuses the conversation: {_short(said['error'])}.")


def _short(text: str) -> str:
    return reason(Exception(text), 200)
