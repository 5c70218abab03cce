"""Which files speak of the same model: by the fingerprint of its weights, else its plan, else its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from prunekit.errors import PrunekitError
from prunekit.report.facts.claims import CHECKPOINT, Claim, FileSaid, Judged, Proof, Subject

# What follows from the geometry of a model, whatever form it is in.
_OF_ALL_FORMS = ("parameters", "blocks_share")
_MOST_ROWS = 100


@dataclass(frozen=True)
class Row:
    """A model in one form. ``letter`` is what plots and sentences call it, ``names`` what files call it; ``model`` is
    the same number for all forms of one model."""

    letter: str
    name: str
    form: str
    dense: bool
    model: int
    names: tuple[str, ...]
    fingerprint: str | None
    plan: str | None
    claims: tuple[Claim, ...]
    verdicts: tuple[Judged, ...]
    proofs: tuple[Proof, ...] = ()

    @property
    def is_baseline(self) -> bool:
        """Whether it is the dense model as PyTorch runs it, which others are compared with."""
        return self.dense and self.form == CHECKPOINT

    @property
    def title(self) -> str:
        return self.name if self.form == CHECKPOINT else f"{self.name}, {self.form}"


@dataclass(frozen=True)
class Grouped:
    """All rows, the dense model first; the number of each subject's model; what could not be matched, in sentences."""

    rows: tuple[Row, ...]
    model: dict[Subject, int]
    warnings: tuple[str, ...]

    def checkpoint_of(self, row: Row) -> Row | None:
        """The row of the same model as PyTorch runs it; None where there is none."""
        return next((each for each in self.rows if each.model == row.model and each.form == CHECKPOINT), None)

    def row_of(self, subject: Subject, form: str = CHECKPOINT) -> Row | None:
        number = self.model.get(subject)
        return next((row for row in self.rows if row.model == number and row.form == form), None)


def group(files: Sequence[FileSaid]) -> Grouped:
    """The rows that ``files`` speak of. Raises PrunekitError where there are more than a page can show."""
    readings = [file.reading for file in files]
    said = [each for reading in readings for each in reading.subjects]
    claims = [each for reading in readings for each in reading.claims]
    verdicts = [each for reading in readings for each in reading.verdicts]
    proofs = [each for reading in readings for each in reading.proofs if each.subject is not None]
    subjects = list(dict.fromkeys((*(each for each, _ in said), *(each.subject for each in claims))))
    sets, warnings = _matched(subjects)
    model = {subject: number for number, each in enumerate(sets) for subject in each}
    own_form = [(each.subject, each.form) for each in claims if each.metric not in _OF_ALL_FORMS]
    forms = dict.fromkeys((model[each], form) for each, form in (*said, *own_form))
    if len(forms) > _MOST_ROWS:
        raise PrunekitError(
            f"These files speak of {len(forms)} models, where a page shows at most {_MOST_ROWS}; give fewer."
        )
    rows = []
    for number, form in forms:
        members = sets[number]
        best = max(members, key=lambda each: (each.fingerprint is not None, each.plan is not None))
        rows.append(
            Row(
                "",
                best.name,
                form,
                _is_dense(members),
                number,
                tuple(dict.fromkeys(each.name for each in members)),
                next((each.fingerprint for each in members if each.fingerprint), None),
                next((each.plan for each in members if each.plan), None),
                tuple(
                    each
                    for each in claims
                    if model[each.subject] == number and (each.form == form or each.metric in _OF_ALL_FORMS)
                ),
                tuple(each for each in verdicts if model.get(each.subject) == number and each.form == form),
                tuple(each for each in proofs if _of(each, model) == (number, form)),
            )
        )
    dense = sorted({row.name for row in rows if row.dense})
    if len({row.model for row in rows if row.dense}) > 1:
        warnings.append(
            f"These files speak of several dense models ({', '.join(dense)}). Each model is compared with its own only."
        )
    return Grouped(_lettered(rows), model, tuple(warnings))


def _of(proof: Proof, model: dict[Subject, int]) -> tuple[int | None, str]:
    return None if proof.subject is None else model.get(proof.subject), proof.form


def _is_dense(members: Sequence[Subject]) -> bool:
    """A model that is pruned in one file is none, though it is what others are compared with in another."""
    return any(each.dense for each in members) and not any(each.dense is False or each.plan for each in members)


def _lettered(rows: list[Row]) -> tuple[Row, ...]:
    def size(row: Row) -> float:
        return max((each.figure.value or 0.0 for each in row.claims if each.metric == "parameters"), default=0.0)

    biggest = {row.model: max(size(each) for each in rows if each.model == row.model) for row in rows}
    ordered = sorted(
        rows, key=lambda row: (not row.dense, -biggest[row.model], row.name, row.form != CHECKPOINT, row.form)
    )
    letters, dense = (_letter(number) for number in count()), list[int]()
    made = []
    for row in ordered:
        if row.dense and row.model not in dense:
            dense.append(row.model)
            made.append(replace(row, letter="dense" if len(dense) == 1 else f"dense {len(dense)}"))
        else:
            made.append(replace(row, letter=next(letters)))
    return tuple(made)


def _letter(number: int) -> str:
    """A to Z, then AA, AB, …"""
    number, letters = number + 1, ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _matched(subjects: Sequence[Subject]) -> tuple[list[list[Subject]], list[str]]:
    """The subjects in sets of one model each, in the order in which they are first spoken of."""
    sets = [[each] for each in subjects]
    sets = _united(sets, lambda each: {found.fingerprint for found in each if found.fingerprint})
    warnings: list[str] = []
    sets = _by_plan(sets, warnings)
    return _by_name(sets, warnings), warnings


def _united(sets: list[list[Subject]], keys: Callable[[list[Subject]], set[str]]) -> list[list[Subject]]:
    made: list[list[Subject]] = []
    place: dict[str, int] = {}
    for each in sets:
        at = next((place[key] for key in sorted(keys(each)) if key in place), None)
        if at is None:
            at = len(made)
            made.append([])
        made[at] += each
        place.update(dict.fromkeys(keys(each), at))
    return made


def _known(each: Iterable[Subject], what: str) -> set[str]:
    return {getattr(found, what) for found in each if getattr(found, what)}


def _by_plan(sets: list[list[Subject]], warnings: list[str]) -> list[list[Subject]]:
    """A plan names one model, unless several were made by it: then what knows the plan alone stands apart."""
    for plan in sorted({plan for each in sets for plan in _known(each, "plan")}):
        having = [each for each in sets if plan in _known(each, "plan")]
        if len(having) < 2:
            continue
        alone = [each for each in having if not _known(each, "fingerprint")]
        others = [each for each in having if _known(each, "fingerprint")]
        if len(others) > 1 and alone:
            warnings.append(
                f"{len(others)} models here were made by one plan ({plan[:12]}), so what was said of the plan "
                f"({alone[0][0].name}) stands in a row of its own."
            )
            others = []
        sets = _merged(sets, [*others[:1], *alone])
    return sets


def _by_name(sets: list[list[Subject]], warnings: list[str]) -> list[list[Subject]]:
    for name in sorted({found.name for each in sets for found in each}):
        having = [each for each in sets if name in {found.name for found in each}]
        if len(having) < 2:
            continue
        unknown = [each for each in having if not _known(each, "fingerprint") and not _known(each, "plan")]
        others = [each for each in having if each not in unknown]
        if len(others) == 2 and not any(all(_known(each, what) for each in others) for what in ("fingerprint", "plan")):
            sets = _merged(sets, [*others, *unknown])
        elif len(others) > 1:
            more = ", so what files say by that name alone stands in a row of its own" if unknown else ""
            warnings.append(f"{len(others)} different models are called {name}{more}.")
            sets = _merged(sets, unknown)
        else:
            sets = _merged(sets, [*others, *unknown])
    return sets


def _merged(sets: list[list[Subject]], chosen: list[list[Subject]]) -> list[list[Subject]]:
    """One set in place of those that were ``chosen``, where the first of them stood."""
    if len(chosen) < 2:
        return sets
    whole = [found for each in sets if any(each is other for other in chosen) for found in each]
    made: list[list[Subject]] = []
    done = False
    for each in sets:
        if not any(each is other for other in chosen):
            made.append(each)
        elif not done:
            made.append(whole)
            done = True
    return made
