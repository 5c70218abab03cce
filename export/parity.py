"""The parity gate: what an export's runtime computes, against what PyTorch computes, on real text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.export.target import CPU, Job
from prunekit.models.runner import Array, Runner
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.models.stored.reading import StoredWeights

WINDOWS = 4
WINDOW = 128
# Prompts of these lengths are continued greedily, each by so many tokens.
PROMPTS = (5, 24, 61)
CONTINUED = 24
# So many tokens are made of the same prompts in one batch, where the runtime takes prompts of different lengths.
TOGETHER = 8
# Of one window, so many tokens go in as a prompt and as many as follow one by one through the KV cache.
CACHED_PROMPT = 40
CACHED_STEPS = 12


@dataclass(frozen=True)
class Tolerance:
    """How far a runtime may be from PyTorch. ``rms`` and ``largest`` are of the logits' differences, over the standard
    deviation of PyTorch's logits; ``perplexity`` bounds the natural logarithm of the ratio; ``weight`` is the largest
    relative error (root mean square of a row) of a stored weight, where those are compared."""

    rms: float
    largest: float
    perplexity: float
    weight: float | None = None


# Rounding errors of a deep model, not of one product: about ten times what was seen on SmolLM2 and tiny models.
TOLERANCES = {
    "fp32": Tolerance(2e-4, 5e-3, 1e-3),
    "fp16": Tolerance(2e-2, 0.3, 1e-2),
    # Products are added up in float16 one by one: emulated, 0.023 and 0.19 on a tiny Mistral, 0.029 and 0.21 on
    # SmolLM2-135M, where sums in float32 come to 0.003 and 0.015.
    "fp16 sums": Tolerance(0.1, 1.0, 5e-2),
    "bf16": Tolerance(0.1, 1.0, 5e-2),
    # Compared with PyTorch on the weights as stored: what is left is that these runtimes round activations to 8 bits.
    "8-bit": Tolerance(0.15, 1.5, 5e-2, weight=0.02),
    "6-bit": Tolerance(0.15, 1.5, 5e-2, weight=0.06),
    "5-bit": Tolerance(0.15, 1.5, 5e-2, weight=0.12),
    "4-bit": Tolerance(0.15, 1.5, 5e-2, weight=0.35),
    "3-bit": Tolerance(0.15, 1.5, 5e-2, weight=0.45),
    "2-bit": Tolerance(0.15, 1.5, 5e-2, weight=0.8),
}
# The same on CUDA, where it is wider. Libraries may split a product, round its parts to 16 bits and add those; int4 and
# int8 meet activations of 16 bits. Reasoned, not measured on a GPU: twice and more what a CPU is allowed.
ON_CUDA = {
    # Sums in another order, and fast exponentials.
    "fp32": Tolerance(5e-4, 1e-2, 2e-3),
    # Ten bits of fraction, as fp16 has, in every product.
    "tf32": Tolerance(2e-2, 0.3, 1e-2),
    "fp16": Tolerance(5e-2, 0.6, 2e-2),
    "bf16": Tolerance(0.15, 1.5, 6e-2),
}
_CLASSES = {
    "fp32": ("fp32", "f32"),
    "fp16": ("fp16", "f16"),
    "bf16": ("bf16",),
    "8-bit": ("int8", "q8_0"),
    "6-bit": ("q6_k",),
    "5-bit": ("q5_0", "q5_1", "q5_k_s", "q5_k_m"),
    "4-bit": ("int4", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"),
    "3-bit": ("q3_k_s", "q3_k_m", "q3_k_l"),
    "2-bit": ("q2_k",),
}


def tolerance_of(dtype: str, half_sums: bool = False, device: str = CPU, tf32: bool = False) -> Tolerance:
    """The tolerance of a target's dtype name. StopIteration for one that no class lists. ``half_sums`` says that the
    runtime may add up products of fp16 in fp16, ``tf32`` that on CUDA it rounds float32 to TF32."""
    kind = next(name for name, dtypes in _CLASSES.items() if dtype in dtypes)
    if device != CPU and kind in ON_CUDA:
        return ON_CUDA["tf32" if tf32 and kind == "fp32" else kind]
    return TOLERANCES["fp16 sums" if half_sums and kind == "fp16" else kind]


@dataclass(frozen=True)
class Difference:
    """Of logits, over all positions and the vocabulary: the largest absolute difference, the same over the standard
    deviation of the reference's logits, and the root mean square over it."""

    largest: float
    largest_relative: float
    rms_relative: float


@dataclass(frozen=True)
class Greedy:
    """Most likely tokens. ``equal`` of ``compared`` agree; at ``near_ties`` the runtime took another token, whose
    reference logit lies within the tolerance of the best; ``wrong`` are the others. The three add up to ``compared``.
    Of greedy continuations no more is compared behind the first that differs, where texts part.
    """

    compared: int
    equal: int
    near_ties: int
    wrong: int


@dataclass(frozen=True)
class Parity:
    """What was compared, and whether it holds.

    ``weights`` is the largest relative error of a stored weight's row and its name (rounded formats only: logits are
    then compared with PyTorch on the stored weights, and ``perplexity_stored`` is PyTorch's on these).
    ``perplexity_reference`` is of the original model in PyTorch, ``perplexity_runtime`` of the export in its runtime;
    ``likeliest`` counts at which positions both rank the same token first, against what PyTorch computes with the
    stored weights; ``agreement`` is the share of positions at which they do so and ``kl`` the mean KL in nats, both
    against the original model. ``together`` compares the tokens of prompts of different lengths in one batch with
    those that the runtime makes of each alone; None where it takes one at a time. ``runtime`` is what the runtime says
    of itself (nodes that stay on the CPU).
    """

    dtype: str
    text: str
    tokens: int
    logits: Difference
    cached: Difference
    greedy: Greedy
    together: Greedy | None
    likeliest: Greedy
    perplexity_reference: float
    perplexity_runtime: float
    perplexity_stored: float | None
    agreement: float
    kl: float
    weights: tuple[float, str] | None
    tolerance: Tolerance
    failures: tuple[str, ...]
    runtime: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; what is not finite is null."""

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: clean(each) for name, each in value.items()}
            if isinstance(value, list | tuple):
                return [clean(each) for each in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {"ok": self.ok, **clean(asdict(self))}


def check_parity(what: str, parity: Parity, job: Job) -> None:
    """Raises PrunekitError where ``what`` differs from PyTorch. Of a model that guesses it says so: where no token is
    likelier than others, rounding decides which comes first."""
    if parity.ok:
        return
    said = f"{what} does not compute what PyTorch computes, so it was removed: {'; '.join(parity.failures)}."
    advice = "Take another dtype or target, and report this."
    if parity.perplexity_reference > job.source.shape.vocab_size / 2:
        advice += (
            f" The model itself has a perplexity of {parity.perplexity_reference:,.0f}, about what guessing gives: "
            "where pruning destroyed it, rounding decides its answers, and pruning less is what helps."
        )
    raise PrunekitError(f"{said} {advice}")


@dataclass(frozen=True)
class Sample:
    """What both sides are given: windows of token ids, int64 [n] each, and what text they are of."""

    text: str
    windows: tuple[Array, ...]

    @property
    def prompts(self) -> tuple[Array, ...]:
        """Beginnings of different windows and of different lengths, int64 [1, n]."""
        made = []
        for place, length in enumerate(PROMPTS):
            window = self.windows[place % len(self.windows)]
            made.append(window[None, : max(1, min(length, len(window) - CONTINUED))])
        return tuple(made)


def sample(job: Job) -> Sample:
    """Windows of the built-in evaluation text, or of random tokens where the checkpoint has no tokenizer."""
    from prunekit.data.calibration import text_tokens
    from prunekit.data.tokenised import bos

    length = min(WINDOW, job.context_length)
    try:
        tokenizer = job.tokenizer
    except PrunekitError:
        generator = np.random.default_rng(0)
        ids = generator.integers(0, job.source.shape.vocab_size, WINDOWS * length)
        return Sample("random tokens", tuple(ids.reshape(WINDOWS, length)))
    ids = np.asarray(text_tokens("builtin", tokenizer), dtype=np.int64)
    start = bos(tokenizer)
    step = max(length, len(ids) // WINDOWS)
    windows = []
    for begin in range(0, min(len(ids) - length + 1, WINDOWS * step), step):
        window = ids[begin : begin + length].copy()
        if start is not None:
            window[0] = start
        windows.append(window)
    return Sample("builtin", tuple(windows))


@dataclass(frozen=True)
class Answers:
    """What a runtime computes of a :class:`Sample`: ``windows``, the logits of each window, float32 [n, vocab_size];
    ``cached``, those of one window's last positions through the KV cache; ``greedy``, the tokens behind each prompt,
    int64 [:data:`CONTINUED`]; ``together``, the first :data:`TOGETHER` of these from one batch of as many prompts as it
    takes, None where it takes one text at a time."""

    windows: tuple[Array, ...]
    cached: Array
    greedy: tuple[Array, ...]
    together: Array | None


def ask(job: Job, runner: Runner, given: Sample) -> Answers:
    """Run an export on ``given``. Raises PrunekitError where the runtime gives logits of another shape."""
    shape = (job.source.shape.vocab_size,)
    with progress("Running the export", len(given.windows) + len(PROMPTS) + 1) as advance:
        windows = []
        for window in given.windows:
            windows.append(runner.logits(window))
            if windows[-1].shape != (len(window), *shape):
                raise PrunekitError(
                    f"The runtime gave logits of the shape {windows[-1].shape} and PyTorch {(len(window), *shape)}; "
                    "the export does not hold this model."
                )
            advance()
        cached = _cached(runner, given.windows[-1])
        advance()
        greedy = []
        for prompt in given.prompts:
            greedy.append(runner.greedy(prompt, CONTINUED).tokens[0])
            advance()
        prompts = _fitting(given.prompts, job.context_length)
        together = None
        if runner.mixes_lengths and len(prompts) > 1:
            together = runner.together([prompt[0] for prompt in prompts], TOGETHER)
    return Answers(tuple(windows), cached, tuple(greedy), together)


def compare(
    job: Job,
    runner: Runner,
    given: Sample,
    stored: Mapping[str, torch.Tensor] | None = None,
    *,
    half_sums: bool = False,
    tf32: bool = False,
) -> Parity:
    """:func:`ask` the export, then :func:`judge` it."""
    return judge(job, ask(job, runner, given), given, stored, half_sums=half_sums, tf32=tf32)


def judge(
    job: Job,
    answers: Answers,
    given: Sample,
    stored: Mapping[str, torch.Tensor] | None = None,
    *,
    half_sums: bool = False,
    tf32: bool = False,
) -> Parity:
    """Compare ``answers`` with PyTorch in float32, by the tolerance of ``job.dtype``, ``job.device``, ``half_sums`` and
    ``tf32``.

    PyTorch reads the runtime's own tokens: as long as both take the same ones, that is what it would decode. So one
    pass computes all, and the model need not be in memory
    (:class:`~prunekit.models.stored.streamed.StreamedModel`). Call it when the runtime has been closed, and only one
    model is there at a time.
    """
    import torch

    from prunekit.models.stored.reading import Replaced, StoredWeights
    from prunekit.models.stored.streamed import StreamedModel

    tolerance = tolerance_of(job.dtype, half_sums, job.device, tf32)
    count = len(given.windows)
    decoded = [_decodable(tokens, job.source.shape.vocab_size) for tokens in answers.greedy]
    continued = [
        np.concatenate([prompt[0], tokens])[:-1] if len(tokens) else prompt[0]
        for prompt, tokens in zip(given.prompts, decoded, strict=True)
    ]
    passes = 1 if stored is None else 2
    with progress("Comparing with PyTorch", passes * job.source.shape.num_hidden_layers) as advance:
        # What was padded has the weights of another folder; what the user gave is what counts.
        own = job.original or job.source
        asked = [*given.windows, *(continued if stored is None else ())]
        expected = StreamedModel(own, torch.float32).logits(asked, advance)
        originals = expected[:count]
        if not all(np.isfinite(each).all() for each in originals):
            raise PrunekitError(
                f"{job.source.name} gives logits that are not finite numbers in PyTorch already; its weights are "
                "broken, so make the checkpoint again."
            )
        weights = None
        if stored is not None:
            unrounded = StoredWeights(job.source)
            weights = _worst_weight(unrounded, stored)
            rounded = StreamedModel(job.source, torch.float32, Replaced(unrounded, stored))
            expected = rounded.logits([*given.windows, *continued], advance)
    reference, behind = expected[:count], expected[count:]
    spread = _spread(reference)
    near = tolerance.largest * spread
    greedy = Greedy(0, 0, 0, 0)
    rows = [logits[prompt.shape[1] - 1 :] for logits, prompt in zip(behind, given.prompts, strict=True)]
    for logits, tokens in zip(rows, decoded, strict=True):
        greedy = _add(greedy, _greedy(logits, logits.argmax(-1), tokens, CONTINUED, near))
    together = _together(rows, decoded, answers.together, near)
    prompt, steps = _cached_lengths(given.windows[-1])
    logits = _difference(answers.windows, reference, spread)
    through_cache = _difference([answers.cached], [reference[-1][prompt - 1 : prompt + steps]], spread)
    perplexities = [_perplexity(each, given.windows) for each in (originals, answers.windows, reference)]
    failures = _failures(tolerance, logits, through_cache, greedy, together, perplexities, weights)
    pairs = [*zip(originals, answers.windows, strict=True)]
    return Parity(
        dtype=job.dtype,
        text=given.text,
        tokens=sum(map(len, given.windows)),
        logits=logits,
        cached=through_cache,
        greedy=greedy,
        together=together,
        likeliest=_likeliest(reference, answers.windows, near),
        perplexity_reference=perplexities[0],
        perplexity_runtime=perplexities[1],
        perplexity_stored=None if stored is None else perplexities[2],
        agreement=float(np.mean([a.argmax(-1) == b.argmax(-1) for a, b in pairs])),
        kl=float(np.mean([_kl(a, b) for a, b in pairs])),
        weights=weights,
        tolerance=tolerance,
        failures=failures,
    )


def _decodable(tokens: Array, vocab_size: int) -> Array:
    """``tokens`` up to the first that is none: behind an end of its text a runtime may say nothing more."""
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    return tokens[: int(wrong[0])] if len(wrong) else tokens


def _worst_weight(unrounded: StoredWeights, stored: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative error of a row of a stored weight, and the weight's name."""
    worst = (0.0, "")
    unknown = sorted(set(stored) - set(unrounded.names()))
    if unknown:
        raise PrunekitError(f"The export holds a weight {unknown[0]} that the model has not.")
    for name, tensor in stored.items():
        wanted = unrounded.read(name)
        if tensor.shape != wanted.shape:
            return math.inf, name
        rows = wanted.reshape(wanted.shape[0], -1).float() if wanted.ndim > 1 else wanted.reshape(1, -1).float()
        error = (tensor.reshape(rows.shape).float() - rows).norm(dim=1)
        # A row that is almost zero beside the others (a token never seen) has no scale of its own.
        scale = rows.norm(dim=1).clamp_min(0.1 * float(rows.norm() / math.sqrt(len(rows))) or 1.0)
        largest = float((error / scale).nan_to_num(math.inf).max())
        if largest > worst[0]:
            worst = (largest, name)
    return worst


def _cached_lengths(window: Array) -> tuple[int, int]:
    """Of a window, how many tokens go in as a prompt, and how many one by one behind it."""
    prompt = min(CACHED_PROMPT, len(window) // 2)
    return prompt, min(CACHED_STEPS, len(window) - prompt)


def _cached(runner: Runner, window: Array) -> Array:
    """Logits of a prompt's last position and of single tokens behind it."""
    prompt, steps = _cached_lengths(window)
    made = [runner.start(window[None, :prompt])[0]]
    made += [runner.step(window[place : place + 1])[0] for place in range(prompt, prompt + steps)]
    return np.stack(made)


def _greedy(logits: Array, wanted: Array, made: Array, count: int, near: float) -> Greedy:
    """``count`` tokens of ``made`` against those that were ``wanted``, as far as both go. ``logits`` [n, vocab_size],
    PyTorch's in front of each token, say what is a tie."""
    both = min(len(wanted), len(made), count)
    differ = np.flatnonzero(wanted[:both] != made[:both])
    if not len(differ):
        # A runtime that broken numbers made stop early is wrong, too, and nothing behind that is compared.
        stopped = int(both < count)
        return Greedy(both + stopped, both, 0, stopped)
    at = int(differ[0])
    row = logits[at]
    tie = bool(row[wanted[at]] - row[made[at]] <= near)
    return Greedy(at + 1, at, int(tie), int(not tie))


def _likeliest(reference: Sequence[Array], made: Sequence[Array], near: float) -> Greedy:
    """At every position, float32 [n, vocab_size] of each window, which token comes first."""
    found = Greedy(0, 0, 0, 0)
    for wanted, logits in zip(reference, made, strict=True):
        chosen, rows = logits.argmax(-1), np.arange(len(wanted))
        # Written so that NaN is no tie.
        gap = wanted.max(-1) - wanted[rows, chosen]
        equal = chosen == wanted.argmax(-1)
        ties = ~equal & (gap <= near)
        counts = (len(wanted), int(equal.sum()), int(ties.sum()), int((~equal & ~ties).sum()))
        found = _add(found, Greedy(*counts))
    return found


def _fitting(prompts: Sequence[Array], room: int) -> list[Array]:
    """The first prompts whose texts fit into ``room`` tokens in all: some runtimes share one cache among them."""
    lengths = np.cumsum([prompt.shape[1] + TOGETHER for prompt in prompts])
    return list(prompts[: int((lengths <= room).sum())])


def _together(logits: Sequence[Array], alone: Sequence[Array], made: Array | None, near: float) -> Greedy | None:
    """The tokens ``made`` of prompts in one batch against those of each ``alone``; None where there are none."""
    if made is None:
        return None
    found = Greedy(0, 0, 0, 0)
    for rows, wanted, row in zip(logits, alone, made, strict=False):
        said = _decodable(row, rows.shape[-1])
        # Behind an end of its text a runtime may say nothing more; something it has to say.
        until = max(1, min(len(wanted), len(said)))
        found = _add(found, _greedy(rows, wanted, said, until, near))
    return found


def _add(first: Greedy, second: Greedy) -> Greedy:
    return Greedy(*(a + b for a, b in zip(asdict(first).values(), asdict(second).values(), strict=True)))


def _difference(made: Sequence[Array], reference: Sequence[Array], spread: float) -> Difference:
    # A window at a time: vocabularies of a quarter of a million make gigabytes of all of them in float64.
    largest = squares = 0.0
    for a, b in zip(made, reference, strict=True):
        gap = np.subtract(a, b, dtype=np.float64)
        # max() would lose a NaN.
        largest = max(largest, float(np.abs(gap).max())) if np.isfinite(gap).all() else math.nan
        if math.isnan(largest):
            return Difference(math.nan, math.nan, math.nan)
        squares += float(np.square(gap, out=gap).sum())
    rms = math.sqrt(squares / sum(each.size for each in reference))
    return Difference(largest, largest / spread, rms / spread)


def _spread(logits: Sequence[Array]) -> float:
    """Standard deviation over all positions and the vocabulary."""
    count = sum(each.size for each in logits)
    mean = sum(float(each.sum(dtype=np.float64)) for each in logits) / count
    return math.sqrt(sum(float(np.square(each - mean).sum(dtype=np.float64)) for each in logits) / count)


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _perplexity(logits: Sequence[Array], windows: Sequence[Array]) -> float:
    losses = [
        -_log_softmax(each[:-1])[np.arange(len(ids) - 1), ids[1:]] for each, ids in zip(logits, windows, strict=True)
    ]
    return float(np.exp(np.concatenate(losses).mean()))


def _kl(dense: Array, made: Array) -> float:
    first, second = _log_softmax(dense), _log_softmax(made)
    return float((np.exp(first) * (first - second)).sum(-1).mean())


def _failures(
    tolerance: Tolerance,
    logits: Difference,
    cached: Difference,
    greedy: Greedy,
    together: Greedy | None,
    perplexities: Sequence[float],
    weights: tuple[float, str] | None,
) -> tuple[str, ...]:
    """What is outside the tolerance, as clauses. Comparisons are written so that NaN fails."""
    failures = []
    if weights is not None and tolerance.weight is not None and not weights[0] <= tolerance.weight:
        failures.append(f"{weights[1]} is off by {weights[0]:.2g} of a row (allowed {tolerance.weight:g})")
    for what, difference in (("logits", logits), ("logits through the KV cache", cached)):
        if not difference.rms_relative <= tolerance.rms:
            failures.append(f"{what} differ by {difference.rms_relative:.2g} (allowed {tolerance.rms:g})")
        elif not difference.largest_relative <= tolerance.largest:
            failures.append(
                f"one of the {what} differs by {difference.largest_relative:.2g} (allowed {tolerance.largest:g})"
            )
    if greedy.wrong:
        failures.append(f"greedy decoding takes other tokens in {greedy.wrong} of {len(PROMPTS)} texts")
    if together is not None and together.wrong:
        failures.append(
            f"{together.wrong} of {len(PROMPTS)} prompts of different lengths get other tokens in one batch than alone"
        )
    _, runtime, reference = perplexities
    if not abs(math.log(runtime / reference) if runtime > 0 and math.isfinite(runtime) else math.nan) <= (
        tolerance.perplexity
    ):
        failures.append(f"perplexity is {runtime:.4g} where PyTorch has {reference:.4g}")
    return tuple(failures)
