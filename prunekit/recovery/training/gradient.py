"""The gradient of one step, computed as many sequences at a time as fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from prunekit.data.packed.windows import Windows
from prunekit.errors import PrunekitError
from prunekit.recovery.teachers.online import Teacher
from prunekit.recovery.training.distance import Loss, Sums
from prunekit.recovery.training.progress import Standing
from prunekit.recovery.training.student import Student
from prunekit.utils.numerics.memory import out_of_memory
from prunekit.utils.process import ranks


class Gradient:
    """``standing`` says how many sequences are computed at a time, and is changed where memory is too small; ``note``
    is told so."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        ce_share: float,
        standing: Standing,
        note: Callable[[str], None] = lambda text: None,
    ):
        self._student, self._teacher, self._standing, self._note = student, teacher, standing, note
        self._loss = Loss(student.head, ce_share)

    def put(self, windows: Windows, sequences: int) -> Sums:
        """Put the gradient of this rank's share of ``windows``, of the ``sequences`` that make the step, into the
        weights, which had none: with several ranks, what their mean is the whole gradient of. Returns the sums of the
        loss over all ranks. Raises PrunekitError where one sequence does not fit into memory."""
        mine = Windows(*map(ranks.share_of, windows))
        while True:
            try:
                sums = self._put(mine, sequences / ranks.size())
                ranks.sum_over_ranks(sums.kl, sums.ce)
                return sums
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
            self._take_less()

    @torch.no_grad()
    def measure(self, windows: Windows) -> Sums:
        """The sums of the loss on ``windows`` alone."""
        # Layers that are spread over ranks are run by all of them alike.
        shares = len(windows.ids) % ranks.size() == 0
        windows = Windows(*map(ranks.share_of, windows)) if shares else windows
        total = None
        for part in self._parts(windows):
            hidden = self._student.hidden(part)
            with self._student.computing():
                sums = self._loss.measure(hidden, self._teacher.target(part), part.ids)
            total = sums if total is None else total + sums
        assert total is not None
        if shares:
            ranks.sum_over_ranks(total.kl, total.ce)
        return total

    def _put(self, windows: Windows, sequences: float) -> Sums:
        total = None
        for part in self._parts(windows):
            target = self._teacher.target(part)
            with torch.enable_grad():
                hidden = self._student.hidden(part)
            with self._student.computing():
                sums, slope = self._loss.backward(hidden, target, part.ids, sequences)
            hidden.backward(slope)
            total = sums if total is None else total + sums
        assert total is not None
        return total

    def _parts(self, windows: Windows) -> Iterator[Windows]:
        """As many windows at a time as are computed together."""
        count = self._standing.micro_batch
        pairs = zip(windows.ids.split(count), windows.documents.split(count), strict=True)
        yield from (Windows(ids, documents) for ids, documents in pairs)

    def _take_less(self) -> None:
        standing = self._standing
        last = standing.micro_batch == 1 and self._student.recompute
        if ranks.size() > 1 and not last:
            # The others wait for this one inside a layer, where nothing can be agreed upon.
            less = f"micro_batch={standing.micro_batch // 2}" if standing.micro_batch > 1 else "recompute=true"
            raise PrunekitError(
                f"The memory of process {ranks.rank()} is too small for {standing.micro_batch} sequences at a time. "
                f"Give the same command again with --set {less}: it goes on from the last checkpoint, if there is one."
            )
        self._student.clear()
        if self._student.device.type == "cuda":
            torch.cuda.empty_cache()
        if standing.micro_batch > 1:
            standing.micro_batch //= 2
            self._note(
                f"The memory is too small for so much at a time: going on with {standing.micro_batch} sequences."
            )
        elif not self._student.recompute:
            self._student.recompute = standing.recompute = True
            self._note("The memory is too small: activations are computed a second time instead of being kept.")
        else:
            raise PrunekitError(
                "One sequence does not fit into memory. Go on on a machine with more of it, or begin anew with shorter "
                "ones (--set text_length=... --overwrite)."
            )
