"""What the baseline says of a text: computed beside a model, or computed once and kept for several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunekit.data.sources import source_name
from prunekit.errors import PrunekitError
from prunekit.evaluation.phases import reads
from prunekit.evaluation.windows import EvalConfig, batches, eval_mode, shortened, windows
from prunekit.utils.files.leftovers import TemporaryFolder
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.models.head import Head


class Baseline(Protocol):
    """``states`` of ``text`` are the final hidden states [n, hidden_size] that predict the tokens of the windows
    ``block`` [B, L] from position ``first`` on; the first of these is number ``at`` among the text's scored tokens."""

    name: str
    config: Any

    @property
    def head(self) -> Head: ...

    def states(self, text: str, at: int, block: torch.Tensor, first: int) -> torch.Tensor: ...


class Beside:
    """``model`` itself, which sees every batch in turn with the model that is evaluated."""

    def __init__(self, model: Any, name: str):
        self.name, self.config, self._model = name, model.config, model

    @property
    def head(self) -> Head:
        from prunekit.models.head import Head

        return Head(self._model)

    def states(self, text: str, at: int, block: torch.Tensor, first: int) -> torch.Tensor:
        return scored_states(self._model, block, first, self.name)


class Kept:
    """What a model said of texts, without the model: hidden states, which lie in a temporary file, and the head that
    turns them into logits. Logits themselves would take 4 bytes times the vocabulary a token: 60 GB for WikiText-2 at
    49k entries."""

    def __init__(self, model: Any, name: str, folder: TemporaryFolder, states: Mapping[str, torch.Tensor]):
        from prunekit.models.head import Head

        self.name, self.config, self.head = name, model.config, Head(model)
        self._device = model.get_output_embeddings().weight.device
        self._folder, self._states = folder, states

    def states(self, text: str, at: int, block: torch.Tensor, first: int) -> torch.Tensor:
        return self._states[text][at : at + block[:, first:].numel()].to(self._device)


def keep(model: Any, tokens: Mapping[str, torch.Tensor], config: EvalConfig, start: int | None, name: str) -> Kept:
    """Run ``model`` over texts, int64 [n] by their names, as :func:`~prunekit.evaluation.perplexity.evaluate` does it.

    Raises PrunekitError where a text is too short, hidden states are not finite, or there is no room for them.
    """
    folder = TemporaryFolder("baseline")
    made = {}
    for number, (text, ids) in enumerate(tokens.items()):
        try:
            made[text] = _written(
                model, shortened(ids, config, text), config, start, name, text, folder.path / f"{number}"
            )
        except OSError as error:
            raise PrunekitError(
                f"What {name} says of {source_name(text)} could not be kept: {error.strerror or error}. Name a folder "
                "with more space in the environment variable TMPDIR, or read less of the text (--max-tokens)."
            ) from None
    return Kept(model, name, folder, made)


def _written(
    model: Any, ids: torch.Tensor, config: EvalConfig, start: int | None, name: str, text: str, file: Path
) -> torch.Tensor:
    """The hidden states of a text [scored tokens, hidden_size], mapped from ``file``."""
    import torch

    spans = windows(len(ids), config.length, config.step)
    count = width = 0
    dtype = torch.float32
    with (
        eval_mode(model),
        file.open("wb") as handle,
        progress(reads(name, text), len(spans), tokens=len(ids)) as advance,
        torch.no_grad(),
    ):
        for block, first in batches(ids, spans, config.batch_size, start):
            rows = scored_states(model, block, first, name).cpu().contiguous()
            handle.write(rows.view(torch.uint8).numpy().data)
            count, width, dtype = count + len(rows), rows.shape[1], rows.dtype
            advance(len(block))
    return torch.from_file(str(file), shared=False, size=count * width, dtype=dtype).view(count, width)


def scored_states(model: Any, block: torch.Tensor, first: int, name: str) -> torch.Tensor:
    """Final hidden states [B · (L - first), hidden_size] that predict the tokens of ``block`` [B, L] from ``first`` on.

    Raises PrunekitError, which names the layer of ``name``, where they are not finite.
    """
    from prunekit.models.head import hidden_states
    from prunekit.utils.numerics.finite import blame_layer, is_finite

    made = hidden_states(model, block)
    if not is_finite(made):
        blame_layer(model, lambda: hidden_states(model, block), name)
    # Logits at position t predict token t + 1.
    return made[:, first - 1 : -1].flatten(0, 1)
