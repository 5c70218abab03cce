"""Where an export runs: refusals before anything is written, what is recorded, tolerances. None of it on a GPU."""

from __future__ import annotations

import json

import pytest
import torch

import prunekit
from prunekit.errors import PrunekitError
from prunekit.export.bench import bench_exports
from prunekit.export.contender import contender
from prunekit.export.device import device_facts, devices_here, place
from prunekit.export.export import check_packages, chosen_device, export, read_export
from prunekit.export.formats.pytorch import torch_export
from prunekit.export.parity import _CLASSES, ON_CUDA, TOLERANCES, tolerance_of
from prunekit.export.registry import TARGET_NAMES, target
from prunekit.export.target import Options, prepared
from prunekit.profiling.compare import BenchConfig
from tests.support.command import listing, make_command

on_cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
NO_GPU = "This machine has no device cuda, as far as this PyTorch can see; it has cpu."
FAST = BenchConfig(prompt=6, tokens=2, repeats=2, warmup=0, max_minutes=0)


@pytest.fixture
def command(monkeypatch, capsys):
    return make_command(monkeypatch, capsys)


@on_cpu_only
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "onnx", "--device", "cuda"), NO_GPU),
        (("--to", "torch-export", "--aot", "--device", "cuda:1"), "This machine has no device cuda:1"),
        (("--to", "torchscript", "--device", "gpu"), "There is no device 'gpu'; use auto, cpu, cuda"),
        (("--to", "torchscript", "--device", "mps"), "torchscript is run on cpu or cuda only, not on mps"),
        (("--to", "openvino", "--device", "cuda"), "(OpenVINO has no device for NVIDIA's GPUs"),
        (("--to", "tensorrt", "--device", "cuda"), "build-engine.sh builds the engine on its GPU, untested"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(uneven, command, tmp_path, arguments, said):
    if arguments[1] == "openvino":
        pytest.importorskip("openvino")
    before = listing(uneven("llama").path)
    ended = command("export", uneven("llama").path, *arguments, "-o", tmp_path / "out")
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [] and listing(uneven("llama").path) == before


@on_cpu_only
def test_no_export_is_timed_on_a_device_that_is_not_there(uneven, command, tmp_path):
    model = uneven("llama").path
    ended = command(
        "bench", model, "--baseline", model, "--runtime", "hf", "--device", "cuda", "-o", tmp_path / "r.json"
    )
    assert ended.code == 2 and NO_GPU in ended.err
    with pytest.raises(PrunekitError, match="no device cuda"):
        bench_exports((str(model), str(model)), "hf", FAST, device="cuda", dtype="fp16")
    with pytest.raises(PrunekitError, match="no device cuda"):
        prunekit.export_model(str(model), "hf", tmp_path / "out", device="cuda", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


def test_targets_without_a_gpu_name_those_with_one():
    with pytest.raises(
        PrunekitError, match=r"for cuda take hf, onnx, onnx-genai, gguf, torchscript, torch-export, vllm"
    ):
        place(target("executorch"), "cuda")
    assert [name for name in TARGET_NAMES if "cuda" not in target(name).devices] == [
        "executorch",
        "openvino",
        "tensorrt",
    ]
    assert all(target(name).only_cpu for name in ("executorch", "openvino", "tensorrt"))


@on_cpu_only
def test_auto_is_the_cpu():
    assert place(target("onnx"), "auto") == place(target("onnx"), "cpu") == "cpu"
    assert place(target("hf"), "auto", ("cpu", "cuda"), "it") == "cpu"
    # What is compiled is compiled for the GPU where there is one.
    assert chosen_device(target("torch-export"), Options(aot=True)) == "cpu"
    # An export for a GPU is not run elsewhere, whatever is said.
    with pytest.raises(PrunekitError, match="no device cuda"):
        place(target("torch-export"), "auto", ("cuda",), "it")
    with pytest.raises(PrunekitError, match=r"it was made for cuda and does not run on cpu; .* --device cpu"):
        place(target("torch-export"), "cpu", ("cuda",), "it")


def test_auto_with_aot_is_the_gpu_where_there_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr("prunekit.export.export.place", lambda target, wanted: asked.append(wanted))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for options in (Options(aot=True), Options(), Options(aot=True, device="cpu")):
        chosen_device(target("torch-export"), options)
    assert asked == ["cuda", "auto", "cpu"]


def test_list_tells_the_devices(command):
    listed = {each["name"]: each for each in command("export", "--list", "--json").json["targets"]}
    assert listed["openvino"]["devices"].keys() == {"cpu"}
    for name in ("hf", "onnx", "onnx-genai", "gguf", "torchscript", "torch-export"):
        assert listed[name]["devices"].keys() == {"cpu", "cuda"}
    if not torch.cuda.is_available():
        assert listed["torchscript"]["devices"] == {"cpu": None, "cuda": NO_GPU}
        assert "cuda, not here: This machine has no device cuda" in " ".join(command("export", "--list").out.split())


def test_a_missing_runtime_is_told_of_devices_too(monkeypatch):
    monkeypatch.setattr(type(target("onnx")), "missing", lambda self, requirements: requirements)
    assert devices_here(target("onnx")) == dict.fromkeys(("cpu", "cuda"), "onnxruntime is not installed.")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("onnx", "pip install onnxruntime-gpu"),
        ("onnx-genai", "onnxruntime-genai-cuda==0.18.0"),
        ("gguf", "-DGGML_CUDA=on"),
    ],
)
def test_a_runtime_built_without_cuda_says_what_to_install(name, package):
    """What the CPU packages here really say of themselves."""
    pytest.importorskip({"onnx": "onnxruntime", "onnx-genai": "onnxruntime_genai", "gguf": "llama_cpp"}[name])
    try:
        target(name).check_device("cuda")
    except PrunekitError as error:
        assert "was built without" in str(error) and package in str(error) and "leave --device out" in str(error)
        assert "\n" not in str(error)
    else:
        pytest.skip("this one was built with CUDA")
    target(name).check_device("cpu")


def test_the_device_is_recorded(uneven, tmp_path):
    made = prunekit.export_model(uneven("llama"), "torchscript", tmp_path / "out", device="cpu", dtype="bf16")
    assert made.device == "cpu" and made.to_dict()["device"] == "cpu"
    manifest = json.loads((tmp_path / "out" / "prunekit-export.json").read_text())
    assert manifest["device"] == {"kind": "cpu"} and manifest["runs_on"] == ["cpu", "cuda"]
    assert manifest["options"]["device"] == "cpu"
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["device"] == {"kind": "cpu"}
    assert read_export(tmp_path / "out").runs_on == ("cpu", "cuda")


def test_an_export_runs_only_where_its_manifest_says(uneven, tmp_path):
    export(uneven("llama"), "hf", tmp_path / "out", verify=False)
    file = tmp_path / "out" / "prunekit-export.json"
    good = json.loads(file.read_text())
    file.write_text(json.dumps({**good, "runs_on": ["cuda"]}))
    names = (str(tmp_path / "out"), str(tmp_path / "out"))
    with pytest.raises(PrunekitError, match="was made for cuda and does not run on cpu; export the model again with"):
        bench_exports(names, "hf", FAST, device="cpu", memory=False)
    if not torch.cuda.is_available():
        with pytest.raises(PrunekitError, match="no device cuda"):
            bench_exports(names, "hf", FAST, memory=False)
    for wrong in ("cuda", [], ["tpu"], [1]):
        file.write_text(json.dumps({**good, "runs_on": wrong}))
        with pytest.raises(PrunekitError, match="runs on no known device"):
            read_export(tmp_path / "out")
    # Those of before there was a choice were traced and packed for the CPU.
    file.write_text(json.dumps({name: value for name, value in good.items() if name != "runs_on"}))
    assert read_export(tmp_path / "out").runs_on == ("cpu",)


def test_bench_names_the_device(uneven):
    name = str(uneven("llama").path)
    report = bench_exports((name, name), "torchscript", FAST, device="cpu", memory=False)
    assert report.machine["device"] == "cpu" and report.peak_how is None
    assert all(result.tpot.dense.median > 0 for result in report.results)


def test_weights_that_a_cpu_widens_are_half_on_a_gpu(uneven, tmp_path, monkeypatch):
    export(uneven("llama"), "hf", tmp_path / "out", Options("fp16"), verify=False)
    opened = read_export(tmp_path / "out", own=True)
    on_cpu = contender(opened)
    monkeypatch.setattr(type(opened.target), "widens_halves", True)
    monkeypatch.setattr(type(opened), "place", lambda self, wanted: "cuda:0")
    monkeypatch.setattr(type(opened), "open", lambda self, threads, device: on_cpu.runner)
    assert contender(opened, device="cuda").facts.decode_bytes == on_cpu.facts.decode_bytes // 2


@pytest.mark.parametrize("dtype", [dtype for dtypes in _CLASSES.values() for dtype in dtypes])
def test_a_gpu_is_allowed_more_than_a_cpu_and_its_weights_no_more(dtype):
    cpu, gpu = tolerance_of(dtype), tolerance_of(dtype, device="cuda:0")
    assert gpu.weight == cpu.weight
    assert gpu.rms >= cpu.rms and gpu.largest >= cpu.largest and gpu.perplexity >= cpu.perplexity


def test_tolerances_on_a_gpu_keep_the_order_of_precisions():
    given = [ON_CUDA[name].rms for name in ("fp32", "tf32", "fp16", "bf16")]
    assert given == sorted(given) and len(set(given)) == 4
    # A wrong RoPE base moves the logits of a tiny model by more than half their spread.
    assert max(given) < 0.2
    assert tolerance_of("f32", device="cuda:0", tf32=True) == ON_CUDA["tf32"]
    assert tolerance_of("fp32", device="cuda:0") == ON_CUDA["fp32"]
    # TF32 is a matter of CUDA, and 4 bits are judged by what the runtime rounds beside them.
    assert tolerance_of("f32", tf32=True) == TOLERANCES["fp32"]
    assert tolerance_of("int4", device="cuda:0") == tolerance_of("q4_k_m", device="cuda:0") == TOLERANCES["4-bit"]


def test_precisions_that_a_device_lacks_are_refused(uneven):
    for name in ("onnx", "onnx-genai"):
        pytest.importorskip({"onnx": "onnxruntime", "onnx-genai": "onnxruntime_genai"}[name])
        with pytest.raises(PrunekitError, match=f"{name}'s runtime has no kernels of bf16 for cpu; choose one of fp32"):
            prepared(target(name), uneven("llama"), Options("bf16"))
        assert prepared(target(name), uneven("llama"), Options("bf16"), device="cuda:0").dtype == "bf16"
    with pytest.raises(PrunekitError, match="no kernels of fp32 for cuda; choose one of fp16, int4, int8, bf16"):
        prepared(target("onnx-genai"), uneven("llama"), Options("fp32"), device="cuda:0")
    assert prepared(target("onnx-genai"), uneven("llama"), Options(), device="cuda:0").dtype == "fp16"
    assert prepared(target("onnx"), uneven("llama"), Options(), device="cuda:0").dtype == "fp32"


def test_machine_code_of_another_gpu_is_refused(monkeypatch):
    gpus = {"cuda:0": ("H100", "9.0"), "cuda:1": ("L4", "8.9")}
    monkeypatch.setattr(
        torch_export, "device_facts", lambda device: dict(zip(("name", "capability"), gpus[device], strict=True))
    )
    facts = {"compiled_for": torch_export.compiled_for("cuda:0")}
    torch_export.check_capability(facts, "cuda:0")
    said = r"compiled for H100, compute capability 9\.0, and cuda:1 is L4, compute capability 8\.9; export"
    with pytest.raises(PrunekitError, match=said):
        torch_export.check_capability(facts, "cuda:1")
    with pytest.raises(PrunekitError, match="compiled for another device"):
        torch_export.check_capability({}, "cuda:0")


def test_facts_of_a_cpu():
    assert device_facts("cpu") == {"kind": "cpu"}


def test_a_runtime_that_takes_the_first_gpu_is_given_no_other(monkeypatch):
    """vLLM would compute on GPU 0 and prunekit measure and name GPU 1."""
    vllm = target("vllm")
    monkeypatch.setattr(type(vllm), "check_device", lambda self, kind: None)
    monkeypatch.setattr(type(vllm), "missing", lambda self, requirements: ())
    monkeypatch.setattr("prunekit.export.device.pick_device", torch.device)
    assert place(vllm, "cuda:0") == "cuda:0"
    with pytest.raises(PrunekitError, match="set CUDA_VISIBLE_DEVICES=1 and say --device cuda"):
        place(vllm, "cuda:1")


def test_only_what_is_compiled_follows_the_gpu_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("prunekit.export.export.place", lambda target, wanted: wanted)
    assert chosen_device(target("torch-export"), Options(aot=True)) == "cuda"
    assert chosen_device(target("torch-export"), Options()) == "auto"
    assert chosen_device(target("gguf"), Options(aot=True)) == "auto"


def test_who_wants_a_gpu_is_told_the_build_for_it(monkeypatch):
    onnx = target("onnx")
    monkeypatch.setattr(type(onnx), "missing", lambda self, requirements: tuple(requirements)[-1:])
    monkeypatch.setattr(type(onnx), "writes_with", ())
    with pytest.raises(PrunekitError, match=r"\.\[onnx-gpu\]"):
        check_packages(onnx, True, "cuda")
    with pytest.raises(PrunekitError, match=r"\.\[onnx\]"):
        check_packages(onnx, True)
