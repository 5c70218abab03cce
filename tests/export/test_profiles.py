"""``prunekit export --profile``: what is chosen for a device, and that it is made and explained."""

from __future__ import annotations

import json

import pytest

from prunekit.export import profiles
from prunekit.export.export import read_export
from prunekit.export.profiles import PROFILES, Choice, Profile, export_profile
from prunekit.export.registry import TARGET_NAMES, target
from prunekit.export.target import Options
from tests.support.command import make_command

MADE_UP = Profile(
    "shelf",
    "A shelf",
    "gguf",
    "It holds what is put on it.",
    (
        Choice("hf", "fp16", 64, "Half of it.", "Put it there."),
        Choice("hf", "fp32", 1, "All of it.", "Put it there."),
        Choice("hf", "q4_k_m", 1, "A quarter of it.", "Put it there."),
    ),
)


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setitem(profiles.PROFILES, "shelf", MADE_UP)
    return make_command(monkeypatch, capsys)


def test_every_profile_names_what_there_is():
    assert set(PROFILES) == {"jetson-orin", "server-gpu", "cpu", "mobile"}
    for profile in PROFILES.values():
        folders = [choice.folder for choice in profile.choices]
        assert len(set(folders)) == len(folders) >= 2
        for choice in profile.choices:
            assert choice.target in TARGET_NAMES
            assert target(choice.target).dtype(choice.dtype) == choice.dtype
            assert choice.why.endswith(".") and choice.run.endswith(".")


def test_one_folder_with_a_readme(uneven, command, tmp_path):
    out = tmp_path / "out"
    made = command("export", uneven("llama").path, "--profile", "shelf", "-o", out, "--json").json
    assert [each["folder"] for each in made["exports"]] == ["hf-fp16", "hf-fp32"]
    assert made["left_out"] == [
        {"folder": "hf-q4_k_m", "reason": "hf has no dtype 'q4_k_m'; choose one of fp32, fp16, bf16."}
    ]
    assert all(each["verified"] and each["path"] == str(out / each["folder"]) for each in made["exports"])
    widths = [
        [layer.intermediate_size for layer in read_export(out / name).shape.layers] for name in ("hf-fp16", "hf-fp32")
    ]
    assert widths == [[512, 512, 128], [501, 512, 77]]
    readme = (out / "README.md").read_text()
    for said in ("A shelf.", "It holds what is put on it.", "Half of it.", "Put it there.", "## Left out", "hf-q4_k_m"):
        assert said in readme
    # 501 and 77 are no multiples of 256; 512 is the widest.
    assert "2 of this checkpoint's 3 layers" in readme and "`--round-for gguf`" in readme
    again = command("export", uneven("llama").path, "--profile", "shelf", "-o", out, "--overwrite")
    assert again.code == 0 and "Left out hf-q4_k_m" in again.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_not_replaced(uneven, command, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("Dear")
    ended = command("export", uneven("llama").path, "--profile", "shelf", "-o", tmp_path / "home", "--overwrite")
    assert ended.code == 2 and "holds no exported profile" in ended.err
    assert (tmp_path / "home" / "letter.txt").read_text() == "Dear"


def test_nothing_is_left_where_nothing_can_be_made(uneven, command, tmp_path, monkeypatch):
    monkeypatch.setitem(profiles.PROFILES, "shelf", Profile("shelf", "A shelf", "gguf", "Why.", MADE_UP.choices[2:]))
    ended = command("export", uneven("llama").path, "--profile", "shelf", "-o", tmp_path / "out")
    assert ended.code == 2 and "Nothing of the profile shelf could be exported. hf-q4_k_m: hf has no" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_padding_grows_with_tensor_parallelism(uneven, tmp_path, monkeypatch):
    seen = []

    def note(source, to, out, options, **known):
        seen.append((to, options.dtype, options.pad_ffn))
        raise profiles.PrunekitError("No.")

    monkeypatch.setattr(profiles, "export", note)
    with pytest.raises(profiles.PrunekitError):
        export_profile(uneven("llama"), PROFILES["server-gpu"], tmp_path / "out", Options(tensor_parallel=2))
    assert seen[0] == ("vllm", "bf16", 128)


def test_the_cpu_profile_for_real(uneven, tmp_path):
    for module in ("llama_cpp", "onnxruntime_genai"):
        pytest.importorskip(module)
    made = export_profile(uneven("llama"), PROFILES["cpu"], tmp_path / "out")
    assert [choice.folder for choice, _ in made.exports] == ["gguf-q4_k_m", "gguf-q8_0", "onnx-genai-int4"], (
        made.left_out
    )
    assert all(exported.parity is not None and exported.parity.ok for _, exported in made.exports)
    assert json.loads((tmp_path / "out" / "prunekit-profile.json").read_text())["profile"] == "cpu"
