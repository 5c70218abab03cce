"""What the dense model says of contexts, kept without its weights until the deployed model has read them too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prunekit.errors import PrunekitError
from prunekit.evaluation.baseline import scored_states
from prunekit.evaluation.token_scores import Paired, TokenScores, log_probs_of, token_scores
from prunekit.evaluation.windows import eval_mode
from prunekit.utils.files.leftovers import TemporaryFolder
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.models.head import Head
    from prunekit.monitoring.scoring.contexts import Context


class DenseAway(PrunekitError):
    """The dense model says nothing: what the deployed one says of the same requests can be known all the same."""


class Said(Protocol):
    """What was said of one context; of the deployed model's final ``hidden`` states [n, hidden_size] and ``head`` it
    makes the scores of the tokens ``targets`` [n]. ``bound``: KL is a lower bound."""

    @property
    def bound(self) -> bool: ...

    def beside(self, head: Head, hidden: torch.Tensor, targets: torch.Tensor, name: str) -> TokenScores: ...


class States(NamedTuple):
    """Hidden states [n, hidden_size] of the model ``name``, of which the ``head`` is still there."""

    name: str
    head: Any
    hidden: Any
    bound: bool = False

    def beside(self, head: Head, hidden: torch.Tensor, targets: torch.Tensor, name: str) -> TokenScores:
        own = self.hidden.to(hidden.device)
        return token_scores(head, hidden, targets, Paired(self.name, self.head, own), name=name, text="the log")


class Likeliest(NamedTuple):
    """Of n tokens, the ``ids`` int64 [n, k] that the model finds likeliest (and the token itself) with their
    log-probabilities ``log_probs`` float64 [n, k], -1 and -inf where there are fewer, and those of the tokens
    themselves, ``own`` float64 [n]; ``first`` int64 [n] are the likeliest ones."""

    ids: Any
    log_probs: Any
    own: Any
    first: Any
    bound: bool = True

    def beside(self, head: Head, hidden: torch.Tensor, targets: torch.Tensor, name: str) -> TokenScores:
        """All other tokens are put together as one, which makes KL a lower bound (log-sum inequality). Raises
        PrunekitError where the server's vocabulary is larger than the model's."""
        import torch

        kept: dict[str, list[torch.Tensor]] = {"nll": [], "kl": [], "agree": []}
        targets = targets.to(hidden.device)
        for part, log_probs in log_probs_of(head, hidden, name=name, text="the log"):
            kept["nll"].append(-log_probs.gather(1, targets[part, None])[:, 0].cpu().double())
            kept["agree"].append((log_probs.argmax(-1).cpu() == self.first[part]).double())
            if (highest := int(self.ids[part].max())) >= log_probs.shape[-1]:
                raise PrunekitError(
                    f"The server of the dense model tells of the token {highest}, and {name} has {log_probs.shape[-1]} "
                    "tokens; name the server of the model that it was pruned from."
                )
            ids = self.ids[part].to(log_probs.device)
            other = log_probs.gather(1, ids.clamp(min=0)).cpu().double()
            kept["kl"].append(coarse_kl(self.log_probs[part], other.where(self.ids[part] >= 0, -torch.inf)))
        made = {key: torch.cat(values) for key, values in kept.items()}
        return TokenScores(**made, baseline_nll=-self.own)


def coarse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) [n] over k tokens, log-probabilities float64 [n, k], and one more that is all others. -inf in both is
    no token."""
    import torch

    p, q = log_p.exp(), log_q.exp()
    terms = torch.where(log_p.isneginf(), 0.0, p * (log_p - log_q)).sum(-1)
    # Rounding of a server's log-probabilities may bring their sum above 1.
    rest_p, rest_q = ((1 - each.sum(-1)).clamp(min=0) for each in (p, q))
    rest = torch.where(rest_p > 0, rest_p * (rest_p.log() - rest_q.clamp(min=1e-12).log()), 0.0)
    return (terms + rest).clamp(min=0)


class KeptStates(Mapping[str, Said]):
    """Hidden states of a dense model by the ids of contexts, in a temporary file, and its head."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = TemporaryFolder("watch")
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._head: Any = None
        self._dtype: Any = None
        self._width = self._files = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> States:
        import torch

        file, at, rows = self._places[key]
        size = rows * self._width
        with file.open("rb") as handle:
            handle.seek(at)
            data = bytearray(handle.read(size * self._dtype.itemsize))
        hidden = torch.frombuffer(data, dtype=torch.uint8).view(self._dtype).view(rows, self._width)
        return States(self.name, self._head, hidden)

    def read(self, model: Any, contexts: Sequence[Context], batch: int = 1) -> None:
        """Let ``model`` read ``contexts``, ``batch`` at a time. Raises PrunekitError where hidden states are not
        finite, or there is no room for them."""
        import torch

        from prunekit.models.head import Head

        self._head = Head(model)
        self._files += 1
        file = self._folder.path / str(self._files)
        try:
            with file.open("wb") as handle:
                for part, states in each_read(model, contexts, self.name, batch):
                    for context, own in zip(part, states, strict=True):
                        rows = own[: len(context.ids) - 1].cpu().contiguous()
                        self._dtype, self._width = rows.dtype, rows.shape[1]
                        self._places[context.id] = (file, handle.tell(), len(rows))
                        handle.write(rows.view(torch.uint8).numpy().data)
        except OSError as error:
            raise PrunekitError(
                f"What {self.name} says of the log could not be kept: {error.strerror or error}. Name a folder with "
                "more space in the environment variable TMPDIR."
            ) from None


def reads_log(name: str) -> str:
    """The phase in which a model reads logged requests."""
    return f"{name} reads the log"


def each_read(
    model: Any, contexts: Sequence[Context], name: str, batch: int = 1
) -> Iterator[tuple[list[Context], torch.Tensor]]:
    """``contexts``, ``batch`` at a time, with the final hidden states [B, L - 1, hidden_size] that predict all tokens
    but the first of the longest of them; what lies behind the end of a shorter one means nothing.

    One at a time, what is said of a request does not depend in its last bits on which others are read.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = sum(len(each.ids) for each in contexts)
    with eval_mode(model), progress(reads_log(name), len(contexts), tokens=tokens) as advance, torch.no_grad():
        for at in range(0, len(contexts), batch):
            part = list(contexts[at : at + batch])
            # No token sees what follows it, so padding on the right changes nothing.
            block = pad_sequence([torch.tensor(each.ids) for each in part], batch_first=True)
            yield part, scored_states(model, block, 1, name).unflatten(0, (len(part), -1))
            advance(len(part))
