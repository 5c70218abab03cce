"""``prunekit export``: bad input, atomicity, untrusted checkpoints, and what the command says."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from prunekit.errors import PrunekitError
from prunekit.export import registry
from prunekit.export.export import export, read_export
from prunekit.export.formats.hf import HuggingFace
from prunekit.export.registry import TARGET_NAMES
from prunekit.export.target import Options
from prunekit.models.source import resolve
from tests.support.command import listing, make_command


@pytest.fixture
def command(monkeypatch, capsys):
    return make_command(monkeypatch, capsys)


def test_list_names_every_target_and_what_it_cannot_do(command):
    listed = command("export", "--list", "--json").json["targets"]
    assert [each["name"] for each in listed] == list(TARGET_NAMES)
    for each in listed:
        assert each["summary"].endswith(".") and each["dtypes"]
        assert each["limits"] and all(limit.endswith(".") for limit in each["limits"])
        assert each["ready"] == all(each["packages"].values())
        assert each["ready"] or each["install"]
    shown = command("export", "--list")
    assert shown.code == 0 and all(name in shown.out for name in TARGET_NAMES)


def test_export_and_what_it_reports(uneven, command, tmp_path):
    out = tmp_path / "mit Leerzeichen und Ümläut 模型"
    made = command("export", uneven("qwen3").path, "--to", "hf", "-o", out, "--dtype", "float16", "--json").json
    assert made["target"] == "hf" and made["dtype"] == "fp16" and made["verified"] is True
    parity = json.loads((out / "parity.json").read_text())
    assert parity["ok"] and parity["tokens"] == 512 and parity["versions"]["torch"]
    assert 0 < parity["logits"]["rms_relative"] <= parity["tolerance"]["rms"]
    assert parity["greedy"]["wrong"] == 0 and parity["perplexity_reference"] > 1
    opened = read_export(out)
    assert opened.dtype == "fp16" and opened.verified and opened.shape == uneven("qwen3").shape
    assert opened.file_bytes > 2 * opened.shape.parameters
    with opened.open(1) as runner:
        assert runner.vocab_size == opened.shape.vocab_size
    tables = command("export", uneven("qwen3").path, "--to", "hf", "-o", tmp_path / "again")
    assert "greedy tokens" in tables.out and "72: 72 equal, 0 tied, 0 other" in tables.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Name the checkpoint to export, or say --list"),
        (("MODEL",), "Name either a target with --to"),
        (("MODEL", "--to", "hf", "--profile", "cpu", "-o", "OUT"), "Name either a target with --to"),
        (("MODEL", "--to", "hf"), "Name the folder to write"),
        (("MODEL", "--to", "onyx", "-o", "OUT"), "There is no target 'onyx'; choose one of hf, onnx"),
        (("MODEL", "--profile", "toaster", "-o", "OUT"), "There is no profile 'toaster'; choose one of jetson-orin"),
        (("MODEL", "--profile", "cpu", "--dtype", "fp16", "-o", "OUT"), "chooses dtype and padding itself"),
        (("MODEL", "--to", "hf", "--dtype", "q3", "-o", "OUT"), "hf has no dtype 'q3'; choose one of fp32"),
        (("MODEL", "--to", "hf", "--layout", "square", "-o", "OUT"), "The layout must be per-layer or uniform"),
        (("MODEL", "--to", "hf", "--pad-ffn", "0", "-o", "OUT"), "Pad ffn must be a whole number of at least 1"),
        (("MODEL", "--to", "hf", "--context-length", "9999", "-o", "OUT"), "beyond the 256 positions"),
        (("MODEL/nothing", "--to", "hf", "-o", "OUT"), "There is no model"),
        (("MODEL", "--to", "hf", "-o", "MODEL"), "already exists; choose another name"),
        (("MODEL", "--to", "hf", "-o", "MODEL", "--overwrite"), "is read by this very run, so it is not replaced"),
    ],
)
def test_bad_input_is_one_sentence(uneven, command, tmp_path, arguments, said):
    places = {"MODEL": str(uneven("llama").path), "OUT": str(tmp_path / "out")}
    before = listing(uneven("llama").path)
    ended = command("export", *(places.get(each, each.replace("MODEL", places["MODEL"])) for each in arguments))
    assert ended.code == 2
    assert said in ended.err and ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [] and listing(uneven("llama").path) == before


def test_a_missing_package_says_how_to_get_it(uneven, command, tmp_path, monkeypatch):
    monkeypatch.setattr(HuggingFace, "missing", lambda self, requirements: requirements)
    ended = command("export", uneven("llama").path, "--to", "hf", "-o", tmp_path / "out")
    assert ended.code == 2 and "needs transformers to run it; run `pip install transformers`, or say" in ended.err
    done = command("export", uneven("llama").path, "--to", "hf", "-o", tmp_path / "out", "--no-verify")
    assert done.code == 0 and "Not verified: --no-verify was given" in done.out
    assert not read_export(tmp_path / "out").verified
    assert not (tmp_path / "out" / "parity.json").exists()


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), PrunekitError("No.")]
)
@pytest.mark.parametrize("where", ["write", "open"])
def test_nothing_is_left_of_a_failed_export(uneven, command, tmp_path, monkeypatch, failure, where):
    def fail(self, first, second=None, device=None):
        folder = second if where == "write" else first
        (Path(folder) / "half").write_text("written")
        raise failure

    monkeypatch.setattr(HuggingFace, where, fail)
    ended = command("export", uneven("llama").path, "--to", "hf", "-o", tmp_path / "deep" / "out")
    assert ended.code == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert ended.err.count("\n") == 1
    if isinstance(failure, OSError):
        assert "No space left on device" in ended.err and "nothing was left behind" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_only_when_the_new_one_holds(uneven, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(uneven("llama"), "hf", out)
    before = listing(out)
    monkeypatch.setattr(HuggingFace, "open", lambda *arguments: (_ for _ in ()).throw(PrunekitError("No.")))
    with pytest.raises(PrunekitError, match="already exists"):
        export(uneven("llama"), "hf", out)
    with pytest.raises(PrunekitError, match=r"No\."):
        export(uneven("llama"), "hf", out, Options("fp16"), overwrite=True)
    assert listing(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    export(uneven("llama"), "hf", out, Options("fp16"), overwrite=True)
    assert read_export(out).dtype == "fp16"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_first(uneven, command, tmp_path):
    tmp_path.chmod(0o500)
    ended = command("export", uneven("llama").path, "--to", "hf", "-o", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert ended.code == 2 and "can't be written to" in ended.err


@pytest.fixture
def hostile(uneven, tmp_path):
    """A checkpoint whose modelling and tokenizer code, if run, leaves a file behind."""
    folder = tmp_path / "hostile"
    shutil.copytree(uneven("llama").path, folder)
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).write_text('yes')\n"
    for file in folder.glob("*.py"):
        file.write_text(code + file.read_text())
    (folder / "tokenization_evil.py").write_text(
        f"{code}from transformers import PreTrainedTokenizerFast as Fast\n\nclass EvilTokenizer(Fast):\n    pass\n"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization_evil.EvilTokenizer"]}
    settings["tokenizer_class"] = "EvilTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return resolve(str(folder)), ran


def test_code_in_a_checkpoint_is_not_run(hostile, tmp_path):
    source, ran = hostile
    made = export(source, "hf", tmp_path / "out")
    assert made.parity is not None and made.parity.ok
    assert not ran.exists()
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert "tokenization_evil.py" not in files
    assert all(str(ran) not in file.read_text() for file in (tmp_path / "out").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_a_tokenizer_that_is_code_runs_only_where_trusted(hostile, tmp_path):
    source, ran = hostile
    made = export(source, "hf", tmp_path / "out", Options(trust_remote_code=True))
    assert made.parity is not None and made.parity.text == "builtin"
    assert ran.exists()


def test_without_a_tokenizer_random_tokens_are_compared(uneven, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(uneven("llama").path, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    made = export(resolve(str(folder)), "hf", tmp_path / "out")
    assert made.parity is not None and made.parity.text == "random tokens"


def test_a_layer_that_should_lack_what_its_weights_hold_is_refused(uneven, command, tmp_path):
    """Some runtimes compute such layers wrongly without a word: only those whose weights are gone may be there."""
    for part in ("attention", "mlp"):
        folder = tmp_path / part
        shutil.copytree(uneven("llama").path, folder)
        config = json.loads((folder / "config.json").read_text())
        config["per_layer_config"]["1"]["skip"] = [part]
        (folder / "config.json").write_text(json.dumps(config))
        ended = command("export", folder, "--to", "hf", "-o", tmp_path / "out")
        assert ended.code == 2 and "which config.json says layer 1 skips" in ended.err
        assert not (tmp_path / "out").exists()


def test_a_damaged_manifest_is_one_sentence(uneven, tmp_path):
    export(uneven("llama"), "hf", tmp_path / "out")
    file = tmp_path / "out" / "prunekit-export.json"
    good = json.loads(file.read_text())
    for change in ({"version": 9}, {"shape": {}}, {"source": 3}, {"target": "onyx"}, {"decode_bytes": "many"}):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(PrunekitError):
            read_export(tmp_path / "out")
    file.write_text("[]")
    with pytest.raises(PrunekitError, match="damaged"):
        read_export(tmp_path / "out")


def test_targets_share_no_name_and_are_made_once():
    assert registry.target("hf") is registry.target("hf")
    with pytest.raises(PrunekitError, match="no target"):
        registry.target("../hf")
