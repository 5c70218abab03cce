"""The user's files: what may be replaced, what appears meanwhile, what dead runs leave."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit.checkpoint.rebuild import rebuild
from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.plan import Plan, whole_plan
from prunekit.report.pictures import draw_widths
from prunekit.utils.files import exchange, leftovers
from prunekit.utils.files.atomic import new_folder, rewrite_bytes, write_text
from prunekit.utils.files.replacing import DEMO, EXPORT, KINDS, PROFILE, check_folder, check_place
from tests.support.command import Command, listing, run_apart
from tests.support.spoiled import Place, Shared, make_shared, must_refuse
from tests.support.written import written

pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return make_shared(tmp_path_factory.mktemp("shared"))


def replace(path: Path, text: str = "new", **options: object) -> None:
    with new_folder(path, True, **options) as folder:  # type: ignore[arg-type]
        (folder / "new").write_text(text)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.format)
def test_what_prunekit_wrote_is_replaced(kind, tmp_path: Path) -> None:
    out = written(tmp_path / "out", kind, a="a")
    with pytest.raises(PrunekitError, match="so it is not replaced"):
        replace(out, kind=EXPORT if kind is not EXPORT else PROFILE)
    (out / ".DS_Store").touch()
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "modeling.cpython-311.pyc").touch()
    replace(out, kind=kind)
    assert listing(tmp_path) == {"out": None, "out/new": 3}
    empty = tmp_path / "empty"
    empty.mkdir()
    replace(empty, kind=kind)
    assert (empty / "new").exists()


def _notes(out: Path) -> None:
    (out / "notes.txt").write_text("mine")


def _below(out: Path) -> None:
    (out / "checkpoint-1").mkdir()
    (out / "checkpoint-1" / "optimizer.pt").write_text("days of training")


def _changed(out: Path) -> None:
    (out / "a").write_text("fine-tuned")


def _linked(out: Path) -> None:
    (out / "a").unlink()
    (out / "a").symlink_to(out / "prunekit.json")


def _empty(out: Path) -> None:
    (out / "results").mkdir()


def _compiled(out: Path) -> None:
    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "a.pyc").touch()
    (out / "__pycache__" / "notes.txt").write_text("mine")


def _hidden(out: Path) -> None:
    (out / ".DS_Store").mkdir()
    (out / ".DS_Store" / "notes.txt").write_text("mine")


def _manifest(out: Path) -> None:
    (out / "prunekit.json").rename(out.parent / "mine.json")
    (out / "prunekit.json").symlink_to(out.parent / "mine.json")


def _unlisted(out: Path) -> None:
    (out / "prunekit.json").write_text('{"format": "prunekit-checkpoint"}')


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (_notes, "also holds notes.txt, which prunekit did not write"),
        (_below, "also holds checkpoint-1/optimizer.pt"),
        (_changed, "a in .* has been changed since prunekit wrote it"),
        (_linked, "also holds a, which prunekit did not write"),
        (_empty, "also holds results"),
        (_compiled, "also holds __pycache__/notes.txt"),
        (_hidden, "also holds .DS_Store"),
        (_manifest, "also holds prunekit.json"),
        (_unlisted, "does not list the files"),
    ],
)
def test_what_is_not_prunekits_alone_stays(spoil: Callable[[Path], None], part: str, tmp_path: Path) -> None:
    out = written(tmp_path / "out", a="a")
    spoil(out)
    before = listing(tmp_path)
    with pytest.raises(PrunekitError, match=part):
        replace(out)
    assert listing(tmp_path) == before


def test_places_that_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = written(tmp_path / "out", a="a")
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(PrunekitError, match="is a link"):
            replace(tmp_path / name)
        with pytest.raises(PrunekitError, match="already exists"), new_folder(tmp_path / name):
            pass
    with pytest.raises(PrunekitError, match=r"is read by this very run"):
        replace(out, inputs=[tmp_path / "link"])
    with pytest.raises(PrunekitError, match=r"holds .*/a, which is read by this very run"):
        replace(out, inputs=[out / "a"])
    monkeypatch.setenv("HOME", str(out / "home"))
    (out / "home").mkdir()
    with pytest.raises(PrunekitError, match="is or holds your home folder"):
        replace(out)
    monkeypatch.setenv("HOME", str(tmp_path))
    (out / "home").rmdir()
    monkeypatch.chdir(out)
    with pytest.raises(PrunekitError, match="is or holds the working folder"):
        replace(out)
    with pytest.raises(PrunekitError, match=r"working folder|mount point"):
        check_place(Path("/"), [])
    monkeypatch.chdir("/")
    with pytest.raises(PrunekitError, match="mount point"):
        check_place(Path("/proc"), [])
    replace(out)
    assert (out / "new").exists()


def test_inputs_of_a_command_are_never_replaced(command: Command, shared: Shared, tmp_path: Path) -> None:
    """The source, its parent, the plan, the text and the baseline, by the command."""
    place = Place(tmp_path, shared)
    pruned = place.pruned
    for arguments, part in (
        (["prune", pruned, "-o", pruned, "--plan", shared.plan, "--overwrite"], "is read by this very run"),
        (["prune", place.model, "-o", pruned, "--plan", pruned / "plan.json", "--overwrite"], "plan.json, which is"),
        (["prune", place.model, "-o", tmp_path, "--plan", shared.plan, "--overwrite"], "/model, which is read"),
        (["export", pruned, "--to", "hf", "-o", pruned, "--overwrite"], "is read by this very run"),
        (place.plan("--blocks", "0.8", "-o", shared.text, "--overwrite"), "is read by this very run"),
        (["eval", pruned, "-o", pruned / "config.json", "--overwrite"], "no report that prunekit wrote"),
        (["eval", pruned, "--text", shared.text, "-o", shared.text, "--overwrite"], "is read by this very run"),
        (["latency-table", pruned, "-o", pruned / "plan.json", "--overwrite"], "no latency table that prunekit"),
    ):
        must_refuse(command, tmp_path, arguments, (part,))
    source, plan = resolve(str(place.model)), Plan.load(pruned / "plan.json")
    with pytest.raises(PrunekitError, match=r"plan\.json, which is read"):
        rebuild(source, plan, pruned, overwrite=True)


def test_files_are_replaced_only_where_that_is_said_and_they_are_prunekits(
    command: Command, shared: Shared, tmp_path: Path
) -> None:
    place = Place(tmp_path, shared)
    plan, picture = tmp_path / "new.json", tmp_path / "widths.png"
    arguments = place.plan("--blocks", "0.8", "--method", "magnitude", "--picture", picture)
    assert command(*arguments).code == 0
    first = plan.read_bytes(), picture.read_bytes()
    must_refuse(command, tmp_path, arguments, ("new.json already exists", "--overwrite"))
    plan.rename(tmp_path / "plan.json")
    must_refuse(command, tmp_path, arguments, ("widths.png already exists", "--overwrite"))
    (tmp_path / "plan.json").rename(plan)
    assert command(*arguments, "--blocks", "0.9", "--overwrite").code == 0
    assert plan.read_bytes() != first[0] and picture.read_bytes() != first[1]
    assert command(*arguments, "--overwrite").code == 0
    assert (plan.read_bytes(), picture.read_bytes()) == first
    for mine, content in ((plan, '{"format": "mine"}'), (picture, "\x89PNG of a holiday")):
        mine.write_text(content)
        must_refuse(command, tmp_path, [*arguments, "--overwrite"], ("that prunekit wrote, so it is not replaced",))
        mine.unlink()
        assert command(*arguments, *["--overwrite"]).code == 0
    both = place.plan("--blocks", "0.8", "-o", tmp_path / "x.png", "--picture", tmp_path / "x.png")
    must_refuse(command, tmp_path, both, ("can't hold both",))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_known_again(kind: str, shared: Shared, tmp_path: Path) -> None:
    picture = tmp_path / f"widths.{kind}"
    plan = whole_plan(resolve(str(shared.model)).shape)
    draw_widths(plan, picture)
    before = picture.read_bytes()
    with pytest.raises(PrunekitError, match="already exists"):
        draw_widths(plan, picture)
    draw_widths(plan, picture, overwrite=True)
    assert picture.read_bytes() == before


def test_what_appears_meanwhile_stays(tmp_path: Path) -> None:
    """And the result, of hours maybe, is kept under another name."""
    out = tmp_path / "out"
    (tmp_path / "out-1").mkdir()
    appeared = pytest.raises(PrunekitError, match=r"out appeared while this ran.* the result is in .*/out-2")
    with appeared, new_folder(out) as folder:
        (folder / "result").touch()
        out.mkdir()
        (out / "thesis.txt").touch()
    assert set(listing(tmp_path)) == {"out", "out/thesis.txt", "out-1", "out-2", "out-2/result"}


@pytest.mark.parametrize("calls", ["with", "without"])
def test_a_file_that_appears_meanwhile_stays(calls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "plan.json"
    if calls == "without":
        monkeypatch.setattr(exchange, "rename_with", lambda *_: False)
    real = exchange.rename_new

    def late(old: Path, new: Path) -> None:
        if not plan.exists():
            plan.write_text("the user's")
        real(old, new)

    monkeypatch.setattr("prunekit.utils.files.atomic.rename_new", late)
    with pytest.raises(PrunekitError, match=r"plan.json appeared .* in .*plan-1.json"):
        write_text(plan, "ours")
    assert listing(tmp_path) == {"plan.json": 10, "plan-1.json": 4}


def test_what_changes_meanwhile_stays(tmp_path: Path) -> None:
    out = written(tmp_path / "out", a="a")
    with pytest.raises(PrunekitError, match=r"out changed while this ran.* in .*/out-1"), new_folder(out, True):
        (out / "notes.txt").write_text("mine")
    assert (out / "notes.txt").exists() and (tmp_path / "out-1").is_dir()


def test_without_the_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On filesystems that know neither: nothing is replaced that must not be, and a new folder replaces an old one."""
    monkeypatch.setattr(exchange, "rename_with", lambda *_: False)
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "x").touch()
    with pytest.raises(PrunekitError, match="appeared"), new_folder(tmp_path / "other") as folder:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "mine").touch()
    shutil.rmtree(out)
    written(out, a="a")
    replace(out)
    assert set(listing(tmp_path)) == {"out", "out/new", "other", "other/mine", "other-1"}
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    write_text(tmp_path / "plan.json", "x")
    with pytest.raises(PrunekitError, match="already exists"):
        write_text(tmp_path / "plan.json", "y")
    assert (tmp_path / "plan.json").read_text() == "x"


def forked(work: Callable[[], None]) -> int:
    """The process id of a copy of this process that runs ``work``."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def killed(work: Callable[[], None]) -> None:
    """Run ``work``, which kills its own process, in a copy of this one."""
    _, status = os.waitpid(forked(work), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_way(out: Path) -> None:
    with new_folder(out, True) as folder:
        (folder / "new").write_text("new")
        die()


def between_renames(out: Path) -> None:
    """Where a filesystem can't exchange names."""
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        real(old, new)
        if ".prunekit-old-" in str(new):
            die()

    exchange.rename_with = lambda *_: False
    os.rename = rename  # type: ignore[assignment]
    replace(out)


def test_leftovers_of_dead_runs_go_and_those_of_live_ones_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = written(tmp_path / "out", old="old")
    (told, tell), (ended, end) = os.pipe(), os.pipe()

    def live() -> None:
        os.close(end)
        with new_folder(out, True) as folder:
            (folder / "new").touch()
            os.write(tell, b"here")
            os.read(ended, 1)

    child = forked(live)
    assert os.read(told, 4) == b"here"
    (its,) = tmp_path.glob(".out.*")
    killed(lambda: half_way(out))
    assert len(list(tmp_path.glob(".out.*"))) == 2
    # Neither another output's, nor what only looks alike.
    foreign = its.name.replace("-new-", "-new-0")[: len(its.name)]
    for name in (".out.abcdefgh", ".out.prunekit-mine", its.name.replace(".out.", ".else."), foreign):
        (tmp_path / name).mkdir()
    capfd.readouterr()
    replace(out)
    err = capfd.readouterr().err
    assert err.count("removed what an earlier run that was killed left there") == 1
    left = {path.name for path in tmp_path.glob(".*")}
    assert its.name in left and len(left) == 5
    os.close(end)
    os.waitpid(child, 0)
    # The other run found that its output had changed meanwhile.
    assert (out / "new").read_text() == "new" and (tmp_path / "out-1").is_dir()


def test_an_old_folder_gets_its_name_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = written(tmp_path / "out", old="old")
    killed(lambda: between_renames(out))
    assert not out.exists()
    with pytest.raises(PrunekitError, match="already exists"), new_folder(out):
        pass
    assert "gave back its name" in capfd.readouterr().err
    assert (out / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_other_machines_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_machine", lambda: ("0" * 8, "1" * 8))
    (theirs := leftovers.free_name(tmp_path, "plan.json")).touch()
    monkeypatch.undo()
    write_text(tmp_path / "plan.json", "x")
    assert theirs.exists() and f"they were left; delete them if none does: {theirs.name}" in capfd.readouterr().err
    # Another start of this machine: whatever ran before it is dead.
    host, _ = leftovers._machine()
    monkeypatch.setattr(leftovers, "_machine", lambda: (host, "1" * 8))
    (dead := leftovers.free_name(tmp_path, "table.json")).touch()
    monkeypatch.undo()
    rewrite_bytes(tmp_path / "table.json", b"x")
    assert not dead.exists()


def test_long_names_have_leftovers_too(tmp_path: Path) -> None:
    out = tmp_path / ("ü" * 120)
    leftovers.free_name(tmp_path, out.name).mkdir()
    with new_folder(out) as folder:
        assert len(os.fsencode(folder.name)) < 255
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_demo_of_its_own_is_replaced(tmp_path: Path) -> None:
    out = written(tmp_path / "demo-output", DEMO, report="x")
    assert check_folder(out, DEMO).keys() == {"report", DEMO.manifest}
    done = run_apart("demo", "-o", out)
    assert done.code == 2 and "already exists" in done.err and "--overwrite" in done.err
