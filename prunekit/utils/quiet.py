"""How prunekit talks to transformers: quietly, and with errors that fit in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without messages and progress bars while the block runs; its verbosity comes back afterwards. Its
    messages hold a stranger's words as they are, and what goes wrong it raises too."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def reason(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, without a closing full stop, cut at ``limit`` characters."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, KeyError):  # its message is only the key
        text = f"{text} is unknown"
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " …"
