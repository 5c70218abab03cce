"""What is sent to ONNX Runtime's CUDA provider, shown on its CPU provider: the same binding, the graphs for a GPU."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.parity import compare, sample
from prunekit.export.registry import target
from prunekit.export.target import Job, Options

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("optimum.exporters.base")

from prunekit.export.formats.onnx.runner import OnnxRunner  # noqa: E402
from prunekit.export.formats.onnx.session import node_facts, open_session  # noqa: E402

FLOAT16, BFLOAT16, INT64 = 10, 16, 7


@pytest.fixture(scope="module")
def exported(uneven, tmp_path_factory):
    made = {}

    def make(dtype):
        if dtype not in made:
            folder = tmp_path_factory.mktemp("onnx") / "out"
            made[dtype] = export(uneven("llama"), "onnx", folder, Options(dtype), verify=False).path
        return made[dtype]

    return make


def unbound(path, ids, steps):
    """Logits of a prompt's last position and of ``steps`` likeliest tokens behind it, by session.run alone: the cache
    goes through numpy."""
    session = open_session(path / "model.onnx")
    past = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
    kind = np.float16 if past[0].type == "tensor(float16)" else np.float32
    cache = [np.zeros((len(ids), each.shape[1], 0, each.shape[3]), kind) for each in past]
    rows = []
    for _ in range(steps + 1):
        total = cache[0].shape[2] + ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((len(ids), total), np.int64),
            "position_ids": np.broadcast_to(np.arange(total - ids.shape[1], total), ids.shape),
            "num_logits_to_keep": np.array(1),
        }
        given |= {each.name: tensor for each, tensor in zip(past, cache, strict=True)}
        logits, *cache = session.run(None, given)
        rows.append(logits[:, -1])
        ids = logits[:, -1].argmax(-1)[:, None]
    return rows


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_bound_and_unbound_give_the_same_numbers(exported, dtype, batch):
    ids = np.random.default_rng(0).integers(0, 512, (batch, 9))
    wanted = unbound(exported(dtype), ids, 5)
    with target("onnx").open(exported(dtype)) as runner:
        assert isinstance(runner, OnnxRunner) and runner.kv_element_bytes == (4 if dtype == "fp32" else 2)
        made = [runner.start(ids)]
        for _ in range(5):
            made.append(runner.step(made[-1].argmax(-1)))
        np.testing.assert_array_equal(np.stack(made), np.stack(wanted))
        # Tokens that stay on the device, with a clock that is read when the device is done.
        ticks = iter([10.0, 13.0, 23.0])
        greedy = runner.greedy(ids, 6, lambda: next(ticks))
        np.testing.assert_array_equal(greedy.tokens, np.stack([each.argmax(-1) for each in wanted], 1))
        assert (greedy.ttft, greedy.tpot) == (3.0, 2.0)


def test_nothing_of_the_cache_is_copied(exported):
    """A step's past are the very tensors that the step before gave."""
    with OnnxRunner(exported("fp32") / "model.onnx") as runner:
        runner.start(np.ones((1, 4), dtype=np.int64))
        given = [each.data_ptr() for each in runner._cache]
        bound = {}
        binding = runner._binding
        real = binding.bind_ortvalue_input
        binding.bind_ortvalue_input = lambda name, value: (bound.update({name: value.data_ptr()}), real(name, value))
        runner.step(np.ones(1, dtype=np.int64))
        assert [bound[name] for name, _, _ in runner._past] == given


def test_nodes_are_counted(exported, uneven):
    session = open_session(exported("fp32") / "model.onnx")
    facts = node_facts(session)
    assert facts["nodes"].keys() == {"CPUExecutionProvider"} and facts["on_cpu"] == {}
    # Behind ONNX Runtime's own rewriting there are fewer than were written.
    written = len(onnx.load(exported("fp32") / "model.onnx", load_external_data=False).graph.node)
    assert 40 < facts["nodes"]["CPUExecutionProvider"] <= written


def test_what_stays_on_the_cpu_is_named():
    class Node:
        def __init__(self, kind):
            self.op_type = kind

    class Group:
        def __init__(self, name, kinds):
            self.ep_name, self.kinds = name, kinds

        def get_nodes(self):
            return [Node(kind) for kind in self.kinds]

    class Session:
        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self):
            cpu = "CPUExecutionProvider"
            return [
                Group("CUDAExecutionProvider", ["MatMul"] * 3),
                Group(cpu, ["Shape"]),
                Group(cpu, ["Gather", "Shape"]),
            ]

    assert node_facts(Session()) == {
        "nodes": {"CUDAExecutionProvider": 3, "CPUExecutionProvider": 3},
        "on_cpu": {"Shape": 2, "Gather": 1},
    }


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this one has CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_cpu_is_not_taken_for_a_gpu(exported, monkeypatch, capfd):
    """ONNX Runtime that can't have a provider goes on without it; here it has none, and only says that it has."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(
        PrunekitError, match=r"could not start CUDAExecutionProvider and would run on the CPU; it needs"
    ):
        target("onnx").open(exported("fp32"), None, "cuda:0")
    assert capfd.readouterr().out == ""


def test_a_graph_in_bfloat16(uneven, tmp_path):
    """For CUDA alone: no CPU has kernels for it, so this is all that can be seen of it here."""
    job = Job(uneven("qwen3", tied=True), Options("bf16"), "bf16", device="cuda:0")
    written = target("onnx").write(job, tmp_path)
    assert written.runs_on == ("cuda",)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {
        value.name.split(".")[0]: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.output)
    }
    assert kinds.pop("logits") == 1  # float32, for whoever picks tokens
    assert kinds == {
        **dict.fromkeys(("input_ids", "attention_mask", "position_ids", "num_logits_to_keep"), INT64),
        **dict.fromkeys(("past_key_values", "present"), BFLOAT16),
    }
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(PrunekitError, match="NOT_IMPLEMENTED"):
        target("onnx").open(tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate provider")
def test_the_program_in_a_readme_for_a_gpu_runs(uneven, exported, monkeypatch, capsys):
    """On the CPU's provider; all else is as it stands."""
    job = Job(uneven("llama"), Options("fp16"), "fp16", device="cuda:0")
    code = re.search(r"```python\n(.*?)```", target("onnx").usage(job), re.DOTALL)[1]
    assert '"cuda", "CUDAExecutionProvider"' in code
    for old, new in (('"cuda", "CUDA', '"cpu", "CPU'), ("onnxruntime.preload_dlls()", "pass")):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(exported("fp16"))
    exec(code, {})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(".")
    ids = np.array([tokenizer("Once upon a time")["input_ids"]])
    made = [row.argmax(-1)[0] for row in unbound(exported("fp16"), ids, 39)]
    assert capsys.readouterr().out == tokenizer.decode([*ids[0], *made]) + "\n"


@pytest.fixture
def genai():
    pytest.importorskip("onnxruntime_genai")
    from prunekit.export.formats.onnx_genai.target import OnnxGenai

    return OnnxGenai()


@pytest.mark.parametrize(("dtype", "tied"), [("int4", True), ("int4", False), ("int8", False), ("fp16", False)])
def test_what_genai_is_given_for_a_gpu_computes_the_same_on_a_cpu(uneven, genai, tmp_path, dtype, tied):
    """Weights of few bits between float16 numbers, which is what fused attention takes there."""
    source = uneven("qwen3", tied=tied)
    job = Job(source, Options(dtype), dtype, device="cuda:0")
    written = genai.write(job, tmp_path)
    assert written.runs_on == ("cpu", "cuda")
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    caches = [each for each in graph.input if each.name.startswith("past_key_values.")]
    assert {each.type.tensor_type.elem_type for each in caches} == {FLOAT16}
    # Nothing is taken from the CPU in the middle: a graph of CUDA can't hold that. Shape is of the mask, for attention.
    assert [node.op_type for node in graph.node].count("Shape") == 1
    with genai.open_exactly(tmp_path) as runner:
        assert runner.facts == {} and runner.kv_element_bytes == 2
        on_cpu = Job(source, Options(dtype), dtype)
        parity = compare(on_cpu, runner, sample(on_cpu), genai.stored_weights(job, tmp_path))
    assert parity.ok, parity.failures


def test_genai_in_bfloat16(uneven, genai, tmp_path):
    job = Job(uneven("llama"), Options("bf16"), "bf16", device="cuda:0")
    written = genai.write(job, tmp_path)
    assert written.runs_on == ("cuda",) and not any("tokenizer" in note for note in written.notes)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    kinds = {value.name.split(".")[0]: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds == {
        **dict.fromkeys(("input_ids", "attention_mask"), INT64),
        **dict.fromkeys(("past_key_values", "present"), BFLOAT16),
        "logits": 1,
    }


def test_genai_asks_for_cuda_graphs_and_says_where_they_fail(uneven, genai, tmp_path, monkeypatch):
    from prunekit.export.formats.onnx_genai import runner as genai_runner
    from prunekit.export.formats.onnx_genai.config import genai_config
    from prunekit.export.formats.onnx_genai.foreign import check_genai

    job = Job(uneven("llama"), Options("fp16"), "fp16", device="cuda:0")
    options = genai_config(job)["model"]["decoder"]["session_options"]["provider_options"]
    assert options == [{"cuda": {"enable_cuda_graph": "1"}}]
    assert (
        genai_config(Job(uneven("llama"), Options("fp16"), "fp16"))["model"]["decoder"]["session_options"][
            "provider_options"
        ]
        == []
    )
    asked = []

    def greedy(self, ids, tokens):
        """As if this were a GPU on which a graph can't be captured."""
        asked.append((self._device, self._captures))
        raise PrunekitError(f"onnxruntime-genai refuses {tmp_path}: no.")

    monkeypatch.setattr(genai_runner.GenaiRunner, "_load", lambda self, filename: None)
    monkeypatch.setattr(genai_runner.GenaiRunner, "greedy", greedy)
    written = genai.write(job, tmp_path)
    assert asked == [("cuda:0", True)]
    said = [note for note in written.notes if "CUDA graphs" in note]
    assert len(said) == 1 and said[0].endswith("no.") and str(tmp_path) not in said[0]
    settings = json.loads((tmp_path / "genai_config.json").read_text())
    kept = settings["model"]["decoder"]["session_options"]["provider_options"]
    assert kept == [{"cuda": {"enable_cuda_graph": "0"}}]
    # Nothing in it that a stranger's folder may not have.
    check_genai(tmp_path, {file.name for file in tmp_path.iterdir()})


def test_genai_refuses_a_gpu_that_it_lacks(uneven, genai, tmp_path):
    import onnxruntime_genai as og

    if og.is_cuda_available():
        pytest.skip("this one has CUDA")
    export(uneven("llama"), "onnx-genai", tmp_path / "out", Options("fp16"), verify=False)
    with pytest.raises(PrunekitError, match="Cuda interface not available"):
        genai.open(tmp_path / "out", None, "cuda:0")
