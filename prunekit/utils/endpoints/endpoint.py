"""An OpenAI-compatible server as it is named, and what one request asks of it."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable

Api = Literal["completions", "chat"]
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Endpoint:
    """A server at ``url`` (with or without ``/v1``) and the ``model`` it is asked for (None: the first it lists).

    ``api_key_env`` names the environment variable that holds the API key: the key itself is never kept. ``api`` is what
    plain prompts are sent to; ``slots`` requests are answered at a time, ``sha256`` is the hash of the model's weights
    and ``server`` the name of the program (None: nobody said). Raises PrunekitError where the address or the variable
    can't be used.
    """

    url: str
    model: str | None = None
    api_key_env: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    api: Api = "completions"
    slots: int | None = None
    sha256: str | None = None
    server: str | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.api not in ("completions", "chat"):
            raise PrunekitError(f"The API of an endpoint is completions or chat, got {printable(str(self.api))!r}.")
        for name, value in self.headers:
            if not _HEADER.fullmatch(name) or not value.isprintable() or not value.isascii():
                raise PrunekitError(f"The header {printable(name)!r} is not one that HTTP allows; write NAME: VALUE.")
        if self.api_key_env is not None and not self._key():
            raise PrunekitError(
                f"The environment variable {printable(self.api_key_env)} is not set; set it to the API key, or leave "
                "the option out."
            )

    @property
    def root(self) -> str:
        """The address without ``/v1``, where ``/metrics`` is."""
        return re.sub(r"/v1$", "", self.url.rstrip("/"))

    @property
    def base(self) -> str:
        """The address with ``/v1``."""
        return self.root + "/v1"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's loopback interface, by its name."""
        return urllib.parse.urlsplit(self.url).hostname in _LOOPBACK

    @property
    def label(self) -> str:
        """How it is named in files that travel: no host but the loopback interface's."""
        parts = urllib.parse.urlsplit(self.url)
        return f"127.0.0.1:{parts.port or 80}" if self.is_local else "remote"

    @property
    def place(self) -> tuple[str, str | None, int | None, str]:
        """Where it is, however it is written: scheme, host, port, path. All names of the loopback interface are one."""
        parts = urllib.parse.urlsplit(self.root)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return parts.scheme, "127.0.0.1" if self.is_local else parts.hostname, port, parts.path.rstrip("/")

    def sent_headers(self) -> dict[str, str]:
        """Headers of every request, the key among them."""
        made = {"accept-encoding": "identity", "user-agent": "prunekit", **dict(self.headers)}
        if self.api_key_env is not None:
            made["authorization"] = f"Bearer {self._key()}"
        return made

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env or "", "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise PrunekitError(f"The API key in {printable(self.api_key_env or '')} holds characters no header may.")
        return key


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
        parts = urllib.parse.urlsplit("")
    if not usable or url != url.strip() or not url.isprintable():
        raise PrunekitError(
            f"{printable(url)!r} is no address of a server; write it like http://127.0.0.1:8000 or https://host/v1."
        )
    if parts.username or parts.password:
        raise PrunekitError("An address must not hold a password; put the key into an environment variable.")
    if parts.query or parts.fragment:
        raise PrunekitError(f"The address {printable(url)!r} must end with the path; leave out what follows ? or #.")


@dataclass(frozen=True)
class Ask:
    """One request: a ``prompt`` (text, or token ids where the server takes them) or chat ``messages``, and at most
    ``max_tokens`` new tokens. ``exact`` asks for exactly that many (``ignore_eos`` and ``min_tokens``, which servers
    that don't know them ignore or refuse). ``extra`` is added to the body as it is."""

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    max_tokens: int = 16
    id: str = ""
    exact: bool = False
    temperature: float = 0.0
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise PrunekitError("A request holds either a prompt or messages.")


def target(endpoint: Endpoint, ask: Ask) -> tuple[str, bool]:
    """The address of a request, and whether it is a chat."""
    chat = ask.messages is not None or endpoint.api == "chat"
    return endpoint.base + ("/chat/completions" if chat else "/completions"), chat


def body(endpoint: Endpoint, ask: Ask, *, stream: bool) -> dict[str, Any]:
    """The JSON of a request. Raises PrunekitError where token ids are to go to a chat."""
    _, chat = target(endpoint, ask)
    made: dict[str, Any] = {"model": endpoint.model or "default", "max_tokens": ask.max_tokens}
    made["temperature"] = ask.temperature
    if not chat:
        made["prompt"] = list(ask.prompt) if isinstance(ask.prompt, tuple) else ask.prompt
    elif ask.messages is not None:
        made["messages"] = [dict(each) for each in ask.messages]
    elif isinstance(ask.prompt, str):
        made["messages"] = [{"role": "user", "content": ask.prompt}]
    else:
        raise PrunekitError("Token ids can't be sent to a chat; send text, or use the completions API.")
    if ask.seed is not None:
        made["seed"] = ask.seed
    if ask.exact:
        made |= {"ignore_eos": True, "min_tokens": ask.max_tokens}
    if stream:
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    return {**made, **ask.extra}
