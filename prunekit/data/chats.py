"""What a row of data holds: a text, or a conversation in one of the forms that chat data has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.errors import PrunekitError

Message = dict[str, Any]

# The field that is asked for where none is named. Only then conversations under other names are looked for.
DEFAULT_FIELD = "text"
_CONVERSATIONS = ("messages", "conversations", "conversation")
_ANSWERED = (
    ("prompt", ("completion", "response", "chosen")),
    ("instruction", ("output", "response")),
    ("question", ("answer", "response")),
    ("query", ("response", "answer")),
)
# Of ShareGPT's forms; every other name stays as it is.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function_response": "tool",
    "observation": "tool",
}


class NoField(Exception):
    """A row lacks the field; the message lists what the row has instead, and ``names`` says whether that is text."""

    def __init__(self, row: Mapping[str, Any], field: str):
        names = sorted(name for name, value in row.items() if isinstance(name, str) and _usable(value))
        has = ", ".join(sorted(str(name) for name in row)) or "none"
        self.names = bool(names)
        super().__init__(
            f"has no field {field!r}; it has {has}. Name one that holds text: --set calib_field={names[0]}, or for "
            f"prunekit eval --field {names[0]}"
            if names
            else f"has no field {field!r}, and none of its fields ({has}) holds text; "
            f'write each row as {{"{field}": "..."}}'
        )


def read_row(row: Any, field: str, where: str) -> str | list[Message] | None:
    """The text of a row, or its conversation as messages of a role and a content; None where that is null.

    ``field`` may hold a text, or a list of messages: {role, content} or {from, value}, a content as a text or a list of
    parts. Where ``field`` is left at "text" and missing, the usual names of conversations are tried: messages,
    conversations, prompt with completion, instruction (and input) with output, question with answer.
    Raises NoField where the field is missing, PrunekitError where it holds something else.
    """
    if row is None:
        return None
    if not isinstance(row, Mapping):
        raise PrunekitError(f'{where} is not a JSON object; write each row as {{"{field}": "..."}}.')
    if field in row:
        return _value(row[field], field, where)
    found = _conversation(row) if field == DEFAULT_FIELD else None
    if found is None:
        raise NoField(row, field)
    return found


def _value(value: Any, field: str, where: str) -> str | list[Message] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _encodable(value)
    messages = _messages(value)
    if messages is not None:
        return messages or None
    raise PrunekitError(
        f"{where} holds no text in {field!r} but {type(value).__name__}; mend or remove it, or name a field with text."
    )


def _conversation(row: Mapping[str, Any]) -> list[Message] | None:
    for name in _CONVERSATIONS:
        messages = _messages(row.get(name))
        if messages is not None:
            return messages
    for asked, answers in _ANSWERED:
        answer = next((row[name] for name in answers if row.get(name) is not None), None)
        turns = [_turn(row.get(asked), "user"), _turn(answer, "assistant")]
        if turns[0] is None or turns[1] is None:
            continue
        extra = row.get("input") if asked == "instruction" else None
        if isinstance(extra, str) and extra.strip() and turns[0]:
            turns[0][-1]["content"] += f"\n\n{_encodable(extra)}"
        system = _turn(row.get("system"), "system") or []
        return [*system, *turns[0], *turns[1]]
    return None


def _turn(value: Any, role: str) -> list[Message] | None:
    if isinstance(value, str):
        return [{"role": role, "content": _encodable(value)}] if value.strip() else []
    return _messages(value)


def _messages(value: Any) -> list[Message] | None:
    """Messages of a role and a content from any of the forms; those without text are left out. None for all else."""
    if not isinstance(value, list | tuple) or not value:
        return None if value != [] else []
    made = []
    for each in value:
        if not isinstance(each, Mapping):
            return None
        role, content = each.get("role", each.get("from")), each.get("content", each.get("value"))
        if not isinstance(role, str):
            return None
        text = _content(content)
        if text is None:
            return None
        if text.strip():
            made.append({"role": _ROLES.get(role.lower(), role), "content": text})
    return made


def _content(value: Any) -> str | None:
    """A message's text: pictures and sound among its parts are left out."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _encodable(value)
    if not isinstance(value, list | tuple):
        return None
    parts = [part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else "" for part in value]
    return "".join(_encodable(part) for part in parts if isinstance(part, str))


def _encodable(text: str) -> str:
    # A lone surrogate, which JSON can spell, is no character and can't be encoded.
    return text.encode("utf-8", "replace").decode()


def _usable(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(_messages(value))
