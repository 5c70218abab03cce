from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime_genai")

import onnx_ir

from prunekit.data.sources import builtin_documents
from prunekit.errors import PrunekitError
from prunekit.export.export import export, read_export
from prunekit.export.formats.onnx_genai import builder as genai_builder
from prunekit.export.formats.onnx_genai import check as genai_check
from prunekit.export.formats.onnx_genai.quantize import Blocks, dequantise, input_moments, quantise
from prunekit.export.formats.onnx_genai.runner import GenaiRunner
from prunekit.export.formats.onnx_genai.target import OnnxGenai
from prunekit.export.target import Job, Options
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, load_model, load_tokenizer
from tests.support.export_models import FAMILIES_TESTED


@pytest.mark.parametrize("model_type", FAMILIES_TESTED)
def test_every_family_in_float32(uneven, tmp_path, model_type):
    made = export(uneven(model_type), "onnx-genai", tmp_path / "out")
    assert made.parity is not None and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 2e-5
    graph = onnx_ir.load(tmp_path / "out" / "model.onnx").graph
    attention = [node for node in graph if node.op_type == "GroupQueryAttention"]
    assert [node.attributes["num_heads"].value for node in attention] == [8, 6, 2]
    assert [node.attributes["kv_num_heads"].value for node in attention] == [4, 3, 1]


@pytest.mark.parametrize("dtype", ["fp16", "int4", "int8"])
def test_smaller_weights(uneven, tmp_path, dtype):
    source = uneven("qwen3", tied=True)
    made = export(source, "onnx-genai", tmp_path / "out", Options(dtype))
    assert made.parity is not None and made.parity.ok
    if dtype == "fp16":
        assert made.parity.weights is None
        return
    # Even an export of odd widths is judged by every weight: all projections, and the table that is also the head.
    target, job = OnnxGenai(), Job(source, Options(dtype), dtype)
    stored = target.stored_weights(job, tmp_path / "out")
    assert stored is not None
    rounded = {name for name in job.model.state_dict() if "proj" in name or "embed" in name}
    assert rounded <= set(stored) and made.parity.weights is not None
    assert made.parity.weights[0] < (0.02 if dtype == "int8" else 0.35)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "sliding_window": 16},
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {
            "model_type": "llama",
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {"model_type": "qwen2", "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ],
    ids=["biases", "window", "some windows", "llama3", "linear"],
)
def test_what_models_of_these_families_may_have(uneven, tmp_path, fields):
    fields = {name: json.loads(json.dumps(value)) for name, value in fields.items()}
    source = uneven.__wrapped__(**fields) if any(isinstance(value, dict) for value in fields.values()) else None
    made = export(source or uneven(**fields), "onnx-genai", tmp_path / "out")
    assert made.parity is not None and made.parity.greedy.equal == 72


@pytest.mark.parametrize(
    ("model_type", "fields", "said"),
    [
        ("olmo2", {}, "not made for OLMo-2 here; export to onnx"),
        ("llama", {"head_dim": 24}, "multiple of 16 channels"),
        ("qwen2", {"hidden_act": "gelu"}, "tested with the activations silu and"),
    ],
)
def test_what_it_cannot_hold_is_refused(uneven, tmp_path, model_type, fields, said):
    with pytest.raises(PrunekitError, match=said):
        export(uneven(model_type, **fields), "onnx-genai", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rotation_by_length_is_sent_where_it_works(uneven, tmp_path):
    source = uneven.__wrapped__("llama", rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(PrunekitError, match=r"'dynamic', whose angles .*export to hf or vllm"):
        export(source, "onnx-genai", tmp_path / "out")


def test_an_untested_version_is_refused(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(genai_check, "TESTED", ("0.1.0",))
    with pytest.raises(PrunekitError, match=r"pip install onnxruntime-genai==0\.1\.0"):
        export(uneven("llama"), "onnx-genai", tmp_path / "out")


@pytest.mark.parametrize("dtype", ["fp32", "int4"])
def test_a_damaged_weight_is_noticed(uneven, tmp_path, monkeypatch, dtype):
    build = genai_builder.build

    def damaged(job: Job, folder: Path) -> int:
        size = build(job, folder)
        data = folder / genai_builder.DATA
        content = bytearray(data.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 4000] = bytes(4000)
        data.write_bytes(content)
        return size

    monkeypatch.setattr(genai_builder, "build", damaged)
    with pytest.raises(PrunekitError, match="so it was removed"):
        export(uneven("llama"), "onnx-genai", tmp_path / "out", Options(dtype))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_looked_up_by_name(uneven, tmp_path, monkeypatch):
    """The builder would ask transformers for a config and a tokenizer, which may be code."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    job = Job(uneven("llama"), Options(), "fp32")
    assert job.model and job.tokenizer
    for auto in (AutoConfig, AutoTokenizer, GenerationConfig):

        def from_folder(*given, real=auto.from_pretrained, **known):
            # The tokenizer is read back from its folder, as data, to compare it.
            if not (Path(given[0]).is_dir() and known.get("local_files_only") and not known.get("trust_remote_code")):
                pytest.fail(f"looked up {given}")
            return real(*given, **known)

        monkeypatch.setattr(auto, "from_pretrained", from_folder)
    OnnxGenai().write(job, tmp_path)
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= {
        file.name for file in tmp_path.iterdir()
    }


@pytest.fixture(scope="module")
def smollm2_export(shortened_smollm2: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genai") / "mit Leerzeichen é"
    made = export(shortened_smollm2, "onnx-genai", folder)
    assert made.parity is not None and made.parity.greedy.equal == 72
    # The table that is also the head is stored once.
    assert made.file_bytes < 1.03 * 4 * shortened_smollm2.shape.parameters
    assert made.written.decode_bytes == pytest.approx(4 * shortened_smollm2.shape.parameters, rel=1e-3)
    return folder


ODD_LINES = (
    "  two spaces, and a tab\there",
    "12345 67 8.90 1,000,000",
    "naïve café, Ünïcödé, 中文字符, עברית, русский",
    "🙂🙃 emoji 👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "it's they'll WE'RE don't",
    "<|im_start|>user\nHello<|im_end|>\n",
    "trailing spaces   ",
)


def test_its_tokenizer_agrees_with_hugging_faces(smollm2_export, shortened_smollm2):
    import onnxruntime_genai as og

    ours = og.Tokenizer(og.Model(str(smollm2_export)))
    theirs = load_tokenizer(shortened_smollm2)
    text = "\n".join(builtin_documents("evaluation") + builtin_documents("calibration"))
    lines = [line for line in text.split("\n") if line.strip()][:1000] + list(ODD_LINES)
    assert len(lines) > 700
    different = [line for line in lines if list(ours.encode(line)) != theirs(line)["input_ids"]]
    assert different == []


def test_the_readme_generates_what_pytorch_does(smollm2_export, shortened_smollm2):
    readme = (smollm2_export / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code.replace("this-folder", str(smollm2_export))],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    model = load_model(shortened_smollm2, dtype="float32", device="cpu")
    tokenizer = load_tokenizer(shortened_smollm2)
    prompt = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_length=100, do_sample=False)
    assert done.stdout.strip() == tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


def test_int4_of_the_real_model(pruned_smollm2, tmp_path):
    made = export(pruned_smollm2, "onnx-genai", tmp_path / "out", Options("int4"))
    assert made.parity is not None and made.parity.perplexity_stored is not None
    # Plain rounding to 4 bits costs a model this small more than a fifth.
    assert made.parity.perplexity_runtime < 1.17 * made.parity.perplexity_reference
    assert made.file_bytes < 0.85 * pruned_smollm2.shape.parameters


def test_a_text_beyond_the_context_is_one_sentence(uneven, tmp_path):
    export(uneven("llama"), "onnx-genai", tmp_path / "out", Options(context_length=80), verify=False)
    opened = read_export(tmp_path / "out")
    assert opened.context_length == 80
    with opened.open(1) as runner:
        assert isinstance(runner, GenaiRunner)
        assert runner.logits(np.arange(1, 81)).shape == (80, runner.vocab_size)
        with pytest.raises(PrunekitError, match="larger --context-length"):
            runner.greedy(np.ones((1, 70), dtype=np.int64), 11)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 77, 501])
def test_blocks_hold_what_was_rounded(bits, columns):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, columns, generator=generator)
    weight[3] = 0
    weight[4] = weight[4].abs()
    made = quantise(weight, bits)
    assert isinstance(made, Blocks) and made.qweight.dtype == torch.uint8
    back = dequantise(made)
    assert back.shape == weight.shape
    assert torch.equal(back[3], weight[3])
    assert ((back - weight).norm(dim=1) < (0.12 if bits == 4 else 0.008) * weight.norm(dim=1).clamp_min(1e-9)).all()


def test_scales_follow_the_inputs(uneven):
    """Errors of weights that meet large inputs count for more, so the layer's output is closer."""
    job = Job(uneven("llama"), Options(), "int4")
    ids = torch.tensor(np.random.default_rng(0).integers(0, job.model.config.vocab_size, (4, 64)))
    moments = input_moments(job.model, ids)
    weight = job.model.model.layers[0].mlp.down_proj.weight.detach()
    values = moments["model.layers.0.mlp.down_proj"]
    assert values.shape == (501,) and (values > 0).all()
    seen = []
    handle = job.model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    TorchRunner(job.model).logits(ids[0].numpy())
    handle.remove()
    errors = [
        float((seen[0] @ (dequantise(quantise(weight, 4, given)) - weight).T).square().mean())
        for given in (values, None)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 32, "tied": True}),
        ("gemma3_text", {"sliding_window": 16, "sliding_window_pattern": 2}),
        # No window of that width is in the graph, and half the layers turn by the other table all the same.
        ("gemma3_text", {"sliding_window": 4096, "sliding_window_pattern": 2}),
        ("phi3", {"sliding_window": 16}),
        ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 16}),
    ],
    ids=["gemma2", "gemma3", "gemma3 wide", "phi3", "smollm3"],
)
def test_other_families(uneven, tmp_path, model_type, fields):
    source = uneven(model_type, **fields)
    made = export(source, "onnx-genai", tmp_path / "out")
    assert made.parity is not None and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 2e-5


def test_fused_projections_are_judged_and_left_alone(uneven, tmp_path):
    source = uneven("phi3")
    job = Job(source, Options("int4"), "int4")
    modules = {name for name, _ in job.model.named_modules()}
    OnnxGenai().write(job, tmp_path)
    assert {name for name, _ in job.model.named_modules()} == modules
    stored = OnnxGenai().stored_weights(job, tmp_path)
    assert stored is not None
    state = job.model.state_dict()
    assert {name for name in state if "proj" in name} <= set(stored)
    assert all(stored[name].shape == state[name].shape for name in stored)


def test_a_token_that_ends_a_text_does_not_end_the_measurement(uneven, tmp_path):
    source = uneven("llama")
    model = TorchRunner(load_model(source, dtype="float32", device="cpu"))
    prompt = np.arange(3, 13)[None]
    wanted = model.greedy(prompt, 20).tokens
    export(source, "onnx-genai", tmp_path / "out", verify=False)
    config = tmp_path / "out" / "genai_config.json"
    settings = json.loads(config.read_text())
    # Two in a row, the first one, and the last.
    settings["model"]["eos_token_id"] = [int(wanted[0, place]) for place in (0, 7, 8, 19)]
    config.write_text(json.dumps(settings))
    with read_export(tmp_path / "out", own=True).open(1) as runner:
        assert runner.greedy(prompt, 20).tokens.tolist() == wanted.tolist()


def test_values_have_eight_bits_beside_four(uneven, tmp_path):
    export(uneven("llama"), "onnx-genai", tmp_path / "out", Options("int4"), verify=False)
    bits = {
        node.name: node.attributes["bits"].value
        for node in onnx_ir.load(tmp_path / "out" / "model.onnx").graph
        if node.op_type == "MatMulNBits"
    }
    assert {value for name, value in bits.items() if "/v_proj/" in name or "lm_head" in name} == {8}
    assert {value for name, value in bits.items() if "/v_proj/" not in name and "lm_head" not in name} == {4}


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 4), ("fp16", 2), ("int4", 4)])
def test_numbers_of_the_cache(uneven, tmp_path, dtype, size):
    made = export(uneven("llama"), "onnx-genai", tmp_path / "out", Options(dtype), verify=False)
    assert any("widens" in note for note in made.written.notes) == (dtype == "fp16")
    with read_export(tmp_path / "out").open(1) as runner:
        assert runner.kv_element_bytes == size


def test_another_tokenizer_is_told(uneven, tmp_path, monkeypatch):
    import onnxruntime_genai as og

    source = uneven("llama")
    assert not export(source, "onnx-genai", tmp_path / "same", verify=False).written.notes

    class Other:
        def __init__(self, model: object):
            pass

        def encode(self, text: str) -> list[int]:
            return [1]

    monkeypatch.setattr(og, "Tokenizer", Other)
    made = export(source, "onnx-genai", tmp_path / "other", verify=False)
    assert any("other tokens than transformers'" in note for note in made.written.notes)


def test_the_builders_neighbours_are_not_left_behind(uneven, tmp_path):
    path = list(sys.path)
    OnnxGenai().write(Job(uneven("llama"), Options(), "fp32"), tmp_path)
    assert sys.path == path and "quantization" not in sys.modules
