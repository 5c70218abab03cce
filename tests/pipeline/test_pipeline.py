"""One pipeline: command and API give the same bytes, from one model that is loaded and one text that is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunekit.data import calibration
from prunekit.errors import PrunekitError
from prunekit.models import source as sources
from prunekit.models.source import Source, resolve
from prunekit.pipeline import make_plan, prune
from prunekit.plan import Plan
from prunekit.plan.recipe import Recipe
from tests.support.command import DEFAULT, Command, save_tiny, write_text
from tests.support.tiny import one_thread

BRIEF = {"sequences": 16, "length": 16}
SHORT = {**BRIEF, "ffn_multiple": 1}
OPTIONS = ("--set", "sequences=16", "--set", "length=16", "--set", "ffn_multiple=1", "--device", "cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    with one_thread():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 12_000)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a model is loaded, a tokenizer loaded, and a text read."""
    counts: Counter[str] = Counter()

    def count(name: str, owner: Any, function: str) -> None:
        real = getattr(owner, function)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, function, counting)

    count("models", sources, "load_model")
    count("texts", calibration, "pieces")
    return counts


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["prunekit", "flap", "adapt-pruner", "slicegpt"])
def test_command_and_api_give_the_same_bytes(
    method: str, command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    named = (DEFAULT,) if method == "prunekit" else ("--method", method)
    told = (*named, "--blocks", "0.7", "--calib", text, *OPTIONS)
    done = command("prune", model, "-o", tmp_path / "command", *told)
    assert done.code == 0, done
    recipe = Recipe.of(method, calib=str(text), **(BRIEF if method == "slicegpt" else SHORT))
    made = prune(str(model), tmp_path / "api", recipe=recipe, device="cpu", blocks=0.7)
    for name in ("model.safetensors", "plan.json", "config.json", "README.md"):
        assert (tmp_path / "api" / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
    assert made.written.path == tmp_path / "api" and made.plan.recipe is not None
    if method == "slicegpt":
        return
    assert command("plan", model, "-o", tmp_path / "plan.json", *told).code == 0
    plan = make_plan(resolve(str(model)), recipe=recipe, device="cpu", blocks="0.7")
    assert plan.to_json() + "\n" == (tmp_path / "plan.json").read_text()
    # A plan that was made in this process has its text at hand.
    again = prune(resolve(str(model)), tmp_path / "again", plan=plan, device="cpu")
    assert _weights(again.written.path) == _weights(tmp_path / "api")
    # The recipe in the plan is the one that made it, but for the place of the text.
    assert Plan.load(tmp_path / "plan.json").recipe == plan.recipe == recipe.with_text("text.txt")


def test_the_default_of_the_api_is_the_command_s(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def see(source: Source, config: Any, *rest: Any) -> Plan:
        seen.append((config.target.text, config.recipe, config.dtype, config.device, config.store_dtype))
        raise PrunekitError("Seen.")

    monkeypatch.setattr("prunekit.pipeline.planning.compute_plan", see)
    for name in ("plan", "prune"):
        assert "Seen." in command(name, model, DEFAULT, "--blocks", "0.7", "-o", tmp_path / name).err
    with pytest.raises(PrunekitError, match="Seen"):
        make_plan(str(model), blocks=0.7)
    with pytest.raises(PrunekitError, match="Seen"):
        prune(str(model), tmp_path / "out", blocks=0.7)
    assert seen == [("--blocks 0.7", Recipe.of(), "auto", "auto", "auto")] * 4


@pytest.mark.parametrize("method", ["prunekit", "flap", "magnitude", "slicegpt"])
def test_a_model_is_loaded_once_and_a_text_read_once(
    method: str, model: Path, text: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    """With text that the model writes itself, too."""
    recipe = Recipe.of(method, calib=f"{text}:0.5,self:0.5", **(BRIEF if method == "slicegpt" else SHORT))
    prune(str(model), tmp_path / "out", recipe=recipe, device="cpu", blocks=0.75)
    assert counted == {"models": 1, "texts": 1}


def test_each_round_uses_up_a_model(model: Path, text: Path, tmp_path: Path, counted: Counter[str]) -> None:
    """Loss curves are drawn again on one that is cut; a second copy in memory would cost as much as the model."""
    recipe = Recipe.of(calib=str(text), redraw_after=0.1, **SHORT)
    made = prune(str(model), tmp_path / "out", recipe=recipe, device="cpu", blocks=0.7)
    assert [row["step"] for row in made.plan.provenance["history"]] == [1, 2, 3]
    assert counted == {"models": 3, "texts": 1}
    # A further size needs the same curves, which are kept.
    prune(str(model), tmp_path / "smaller", recipe=recipe, device="cpu", blocks=0.67)
    assert counted == {"models": 4, "texts": 2}


def test_a_model_that_planning_used_up_is_loaded_again(
    model: Path, text: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    """Progressive allocation cuts it on the way, and a second copy in memory would cost as much as the model."""
    recipe = Recipe.of("adapt-pruner", refit=True, calib=str(text), **SHORT)
    prune(str(model), tmp_path / "out", recipe=recipe, device="cpu", blocks=0.7)
    assert counted == {"models": 2, "texts": 1}


def test_a_plan_is_applied_with_one_model_and_one_text(
    model: Path, text: Path, tmp_path: Path, counted: Counter[str]
) -> None:
    plan = make_plan(str(model), recipe=Recipe.of(calib=str(text), **SHORT), device="cpu", dtype="float32", blocks=0.7)
    plan.save(tmp_path / "plan.json")
    counted.clear()
    given = {"plan": tmp_path / "plan.json", "calib": str(text), "device": "cpu"}
    prune(str(model), tmp_path / "out", **given)
    assert counted == {"models": 1, "texts": 1}
    with pytest.raises(PrunekitError, match="give that text with --calib"):
        prune(str(model), tmp_path / "no", plan=tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "at least one target"),
        ({"block": 0.8}, "no goal 'block'.*did you mean 'blocks'"),
        ({"blocks": 0.8, "method": "adapt-prunner"}, "did you mean 'adapt-pruner'"),
        ({"blocks": 0.8, "method": "flap", "recipe": Recipe.of()}, "already names its method"),
        ({"kv_cache": 0.5, "method": "flap"}, "flap takes --params"),
        ({"latency": 0.5}, "needs --latency-table"),
        ({"blocks": 1.2}, "not a share"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_looked_for(
    given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(PrunekitError, match=said):
        make_plan("no/such-model", **given)
    with pytest.raises(PrunekitError, match=said):
        prune("no/such-model", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_plan_and_goals_are_not_given_at_once(tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match="a plan or goals"):
        prune("no/such-model", tmp_path / "out", plan=tmp_path / "plan.json", blocks=0.8)
