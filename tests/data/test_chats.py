"""The texts people have: chats in every usual form, through the model's template; null rows, columns, other endings."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from prunekit.data import chat_child
from prunekit.data.calibration import CalibrationConfig, load_calibration, text_tokens
from prunekit.data.chat_template import chat_template, render_chats
from prunekit.data.sources import documents
from prunekit.errors import PrunekitError
from prunekit.utils.process.child import Ended
from tests.support.command import QUICK, Command, save_tiny
from tests.support.tiny_text import BOS, tiny_tokenizer, whole_text

TURNS = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}]
# Names, loops, filters, the date and blocks, as templates of real models use them.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{%- if loop.first and message.role != 'user' %}"
    "{{ raise_exception('The first turn must be the user\\'s') }}{% endif -%}\n"
    "    <{{ message['role'] | upper }}>{{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<ASSISTANT>{% endif %}{% generation %}{{ [1, 'é'] | tojson }}{% endgeneration %}"
    "{{ strftime_now('%Y') | length }}{% set ns = namespace(n=0) %}{% for i in range(3) %}{% if i == 2 %}{% break %}"
    "{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
)


def templated(template: Any = TEMPLATE, **options: Any) -> Any:
    tokenizer = tiny_tokenizer(**options)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work in this process: an import of transformers less for each test that is not about limits."""

    def run(*, module: str, input: str, **_: Any) -> Ended:
        assert module == chat_child.__name__
        out = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(input))
            patch.setattr(sys, "stdout", out)
            chat_child.main()
        return Ended(0, out.getvalue(), "")

    monkeypatch.setattr("prunekit.data.chat_template.run_python", run)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def calibrate(path: Path, tokenizer: Any, **fields: Any) -> Any:
    return load_calibration(
        CalibrationConfig(**{"source": str(path), "sequences": 2, "length": 8, **fields}), tokenizer
    )


def test_rendered_as_transformers_does() -> None:
    tokenizer = templated()
    chats = [TURNS, TURNS[:1], [{"role": "user", "content": "東京 <b> & \u2028 🙂"}]]
    for generation in (False, True):
        expected = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation) for chat in chats
        ]
        assert render_chats(tokenizer, chats, generation=generation) == expected


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "text_id": 3},
        {"conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dog."}]},
        {"prompt": "What is it?", "completion": "A dog."},
        {"prompt": "What is it?", "response": "A dog."},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"instruction": "What is it?", "input": "", "output": "A dog."},
        {"question": "What is it?", "answer": "A dog."},
        {"messages": [{**TURNS[0], "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}, TURNS[1]]},
        {"messages": [{"role": "system", "content": None}, *TURNS]},
        {"text": TURNS},
    ],
)
def test_every_form_of_a_chat(tmp_path: Path, row: Any) -> None:
    tokenizer = templated()
    path = write_rows(tmp_path / "chat.jsonl", [row])
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    made = calibrate(path, tokenizer, sequences=1)
    assert made.text_sha256 == hashlib.sha256(expected.encode() + b"\0").hexdigest()
    assert made.describe()["chat_template"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert text_tokens(str(path), tokenizer).tolist() == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_instructions_with_input_and_system() -> None:
    from prunekit.data.chats import read_row

    row = {"system": "Be brief.", "instruction": "Add.", "input": "1 2", "output": "3"}
    assert read_row(row, "text", "Row 1") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add.\n\n1 2"},
        {"role": "assistant", "content": "3"},
    ]


@pytest.mark.usefixtures("in_process")
def test_a_template_that_sets_bos_gives_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": TURNS}] * 3)
    tokenizer = templated(bos=True)
    expected = tokenizer(tokenizer.apply_chat_template(TURNS, tokenize=False), add_special_tokens=False)["input_ids"]
    assert expected.count(BOS) == 1
    assert calibrate(path, tokenizer, sequences=1, length=2 * len(expected)).blocks[0].tolist() == 2 * expected
    assert text_tokens(str(path), tokenizer)[: len(expected)].tolist() == expected


def test_without_a_template_messages_are_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": TURNS}])
    made = calibrate(path, tiny_tokenizer(), sequences=1)
    assert made.text_sha256 == hashlib.sha256(b"What is it?\n\nA dog.\0").hexdigest()
    assert made.describe()["chat_template"] is None
    assert "no chat template" in caplog.text


def test_rows_without_text_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{}, {"text": None}, None, {"text": "one two"}, {"text": ""}, {"other": 1}, {"text": []}, {"text": "three"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert [each for each in documents(str(path)) if each] == ["one two", "three"]
    assert "6 of the first 8 rows of a.jsonl hold no text" in caplog.text
    write_rows(path, [{"text": None}, {"text": " "}])
    with pytest.raises(PrunekitError, match=r"No row of .* holds text in 'text'"):
        list(documents(str(path)))


@pytest.mark.usefixtures("in_process")
def test_chats_that_the_template_refuses_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": TURNS[1:]}, {"messages": TURNS}])
    tokenizer = templated()
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert calibrate(path, tokenizer).text_sha256 == hashlib.sha256(expected.encode() + b"\0").hexdigest()
    assert "1 of the first 2 rows" in caplog.text and "must be the user's" in caplog.text
    write_rows(path, [{"messages": TURNS[1:]}] * 2)
    with pytest.raises(PrunekitError, match=r"refuses the conversation: The first turn must be the user's"):
        calibrate(path, tokenizer)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".semicolon.csv", ".csv.gz", ".parquet", ".json", ".jsonl.gz"])
def test_rows_of_every_kind(tmp_path: Path, ending: str) -> None:
    rows = [{"id": 1, "body": 'said "a, b;\tc"\n\nand so on'}, {"id": 2, "body": None}, {"id": 3, "body": "東京"}]
    path = tmp_path / f"a{ending}"
    if "csv" in ending or "tsv" in ending:
        plain = tmp_path / "plain"
        with plain.open("w", newline="") as file:
            writer = csv.writer(file, delimiter={".tsv": "\t", ".semicolon.csv": ";"}.get(ending, ","))
            writer.writerows([rows[0].keys(), *(row.values() for row in rows)])
        path.write_bytes(gzip.compress(plain.read_bytes()) if ending.endswith(".gz") else plain.read_bytes())
    elif ending == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == ".json":
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert list(documents(str(path), field="body")) == [rows[0]["body"], "東京"]
    # The advice that is given works.
    with pytest.raises(PrunekitError, match=r"no field 'text'") as caught:
        list(documents(str(path)))
    named = re.search(r"--set calib_field=(\w+)", str(caught.value))
    assert named is not None and list(documents(str(path), field=named[1]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", 'text,b\n"open,1\n' + "x\n" * 9, None),
        ("a.csv", "only,a,header\n", "No row of .* holds text"),
        ("a.parquet", "PAR1 and nothing else", "is not a Parquet file"),
        ("a.json", '[{"text": "a"}, {"text": ', "Entry 2 of .* is not valid JSON"),
        ("a.json", "[" * 9000, "Entry 1 of .* is not valid JSON"),
        ("a.json", '[{"text": ' + "7" * 5000 + "}]", "Entry 1 of .* is not valid JSON"),
        ("a.jsonl", '{"id": 1}\n', 'none of its fields .id. holds text; write each row as {"text": "..."}'),
        ("a.jsonl", '{"messages": "hello"}\n', "calib_field=messages"),
        ("a.jsonl", '{"text": {"a": 1}}\n', "holds no text in 'text' but dict"),
    ],
)
def test_rows_that_cant_be_read(tmp_path: Path, name: str, data: str, message: str | None) -> None:
    (tmp_path / name).write_text(data)
    if message is None:
        list(documents(str(tmp_path / name)))
        return
    with pytest.raises(PrunekitError, match=message) as caught:
        whole_text(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('No such role') }}", "refuses the conversation: No such role"),
        ("{{ messages[7].content.x }}", "refuses the conversation: .*no element 7"),
        ("{% if %}", "refuses the conversation: Expected an expression"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses the conversation: maximum recursion depth"),
        ("{{ 1 + 'a' }}", "refuses the conversation: unsupported operand"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the conversation: access to attribute"),
        ("(" * 20 + "{{ " + "(" * 9000 + " }}", "refuses the conversation|could not be rendered"),
        ({"rag": "x"}, "several chat templates .rag. and none that is named default"),
        (7, "is no text"),
        ("x" * (2 << 20), "at most 1,048,576"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template: Any, message: str) -> None:
    with pytest.raises(PrunekitError, match=message) as caught:
        made = render_chats(templated(template), [TURNS])
        raise next(each for each in made if isinstance(each, PrunekitError))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_template_that_loops_or_grows_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrunekitError, match=r"refuses the conversation: MemoryError|could not be rendered"):
        raise next(iter(render_chats(templated("{{ 'a' * 10000000000 }}"), [TURNS])))  # type: ignore[misc]
    monkeypatch.setattr("prunekit.data.chat_template._OUTPUT", 1 << 20)
    with pytest.raises(PrunekitError, match=r"could not be rendered .it wrote too much"):
        render_chats(templated("{{ 'a' * 4000000 }}"), [TURNS])
    monkeypatch.setattr("prunekit.data.chat_template._SECONDS", 2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(PrunekitError, match=r"could not be rendered .it computed for too long"):
        render_chats(templated(loops), [TURNS])


def test_the_default_of_several_templates() -> None:
    assert chat_template(templated({"default": "a", "rag": "b"})) == "a"
    assert chat_template(tiny_tokenizer()) is None


@pytest.mark.usefixtures("in_process")
def test_a_plan_on_chats_is_applied_and_evaluated(command: Command, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": TURNS}] * 40)
    plan = tmp_path / "plan.json"
    assert (
        command("plan", model, "--blocks", "0.8", "--calib", path, "-o", plan, "--set", "refit=true", *QUICK).code == 0
    )
    assert json.loads(plan.read_text())["provenance"]["calibration"]["chat_template"]
    asked = ("prune", model, "--plan", plan, "--calib", path, "-o", tmp_path / "out", "--device", "cpu")
    assert command(*asked).code == 0
    ended = command("eval", tmp_path / "out", "--text", path, "--length", "16", "--device", "cpu", "--json")
    expected = whole_text(str(path), render=lambda chats: render_chats(templated(), chats))
    assert ended.code == 0 and ended.json["results"][0]["tokens_seen"] <= len(expected)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }} and more of it " * 3)
    assert "another one" in command(*asked, "--overwrite").err


@pytest.mark.usefixtures("in_process")
def test_generate_chat(command: Command, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}{% if add_generation_prompt %}A:{% endif %}")
    asked = ("generate", model, "--chat", "-p", "hi there", "--max-new-tokens", "2", "--device", "cpu", "--json")
    assert command(*asked).json["results"][0]["prompt_tokens"] == len("hi thereA:")
    (model / "chat_template.jinja").write_text("{{ raise_exception('Roles must alternate') }}")
    ended = command(*asked)
    assert ended.code == 2 and "Roles must alternate; leave --chat out" in " ".join(ended.err.split())
    assert command(*(each for each in asked if each != "--chat")).code == 0
