"""The page: what is on it, that nothing in it obeys a stranger, and that the same input gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import prunekit
from prunekit.errors import PrunekitError
from prunekit.report.facts.claims import Figure
from prunekit.report.page.markup import Markup, element, embedded
from prunekit.report.page.style import CSS
from prunekit.report.page.tradeoff import Point, compared, unbeaten
from prunekit.report.write import write_report
from tests.fuzz.fuzz_mutations import spoil
from tests.support.report_files import all_files, bench, candidates, evaluation, generated, result, tiny_plan, write

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[31m\u202e$x_1$"
VOID = {"meta", "br", "hr", "use"}


class Reader(HTMLParser):
    """The elements of a page: (name, attributes), its texts, and whether they are nested as they should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(folder: Path, *files: Any, **options: Any) -> tuple[str, dict[str, Any]]:
    paths = [each if isinstance(each, Path) else write(folder / f"{n}.json", each) for n, each in enumerate(files)]
    report = write_report(paths, folder / "page.html", overwrite=True, **options)
    return report.page.read_text(), json.loads(report.kpis.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A page of one file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    prices = folder / "prices.toml"
    prices.write_text("dollars_per_hour = 1.5\nwatts = 90\n")
    return made(folder, *all_files(folder), prices=prices)


def test_the_parts_stand_in_their_order(whole: tuple[str, dict[str, Any]]) -> None:
    found = [attributes["id"] for attributes in Reader(whole[0]).named("h2")]
    assert found == ["decision", "proved", "tradeoff", "widths", "completions", "why", "figures", "method", "missing"]
    assert all(f'href="#{name}"' in whole[0] for name in found)


def test_every_cell_tells_how_its_figure_came_about(whole: tuple[str, dict[str, Any]]) -> None:
    table = whole[0][whole[0].index('id="decision"') : whole[0].index('id="proved"')]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table)
    assert len(cells) > 40
    words = (
        "measured",
        "exact",
        "estimated",
        "predicted",
        "contradictory",
        "other set-up",
        "costs quality",
        "fine",
        "–",
    )
    assert all(any(word in cell for word in words) for cell in cells)


def test_a_ratio_has_its_milliseconds_beside_it(tmp_path: Path) -> None:
    page, _ = made(tmp_path, bench(0.8, ttft=0.1, tpot=0.01))
    table = page[page.index('id="decision"') : page.index('id="figures"')]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
    told = [[re.findall(r"[\d.]+ ms", cell) for cell in row[1:3]] for row in cells]
    assert told == [[["100.0 ms"], ["10.00 ms"]], [["80.0 ms"], ["8.00 ms"]]]


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        folder = tmp_path / name / "results"
        folder.mkdir(parents=True)
        files = all_files(folder)
        report = write_report(files, tmp_path / f"{name}.html")
        pages.append((report.page.read_bytes(), report.kpis.read_bytes()))
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0][0] + pages[0][1]


def test_it_asks_for_nothing(whole: tuple[str, dict[str, Any]]) -> None:
    page = Reader(whole[0])
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"(https?:)?//\w", re.sub(r"<script.*?</script>", "", whole[0], flags=re.DOTALL))
    assert "url(" not in CSS and "@import" not in CSS
    assert {name for name, _ in page.elements} & {"iframe", "object", "embed", "link", "base", "form", "img"} == set()


def test_its_policy_allows_its_own_script_and_no_other(whole: tuple[str, dict[str, Any]]) -> None:
    policy = next(each["content"] for each in Reader(whole[0]).named("meta") if "http-equiv" in each)
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe-inline'; img-src data:" in policy
    scripts = re.findall(r"<script>(.*?)</script>", whole[0], re.DOTALL)
    (digest,) = re.findall(r"script-src 'sha256-([^']+)'", policy)
    assert [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts] == [digest]


def test_its_figures_are_inside_and_beside(whole: tuple[str, dict[str, Any]]) -> None:
    page, beside = whole
    (inside,) = re.findall(r'<script type="application/json" id="kpis">(.*?)</script>', page, re.DOTALL)
    assert json.loads(inside) == beside
    assert beside["format"] == "prunekit-kpis" and next(iter(beside["rows"][0]["decision"])) == "loss_added"
    for row in beside["rows"]:
        for figure in row["decision"].values():
            assert figure["status"] in (
                "measured", "exact", "estimated", "predicted", "not measured", "contradictory",
            )  # fmt: skip
            assert (figure["value"] is None) == (figure["status"] in ("not measured", "contradictory"))
    assert all(len(file["sha256"]) == 64 for file in beside["files"])


def test_each_id_is_there_once(whole: tuple[str, dict[str, Any]]) -> None:
    page = Reader(whole[0])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "href"):
            if attributes.get(name):
                assert str(attributes[name]).lstrip("#") in ids
    assert all(each in whole[0] for each in ('role="img"', "<title id=", 'lang="en"', 'scope="row"', 'scope="col"'))


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _palettes() -> Iterator[dict[str, str]]:
    for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL):
        yield {
            name: value if len(value) == 7 else "#" + "".join(2 * sign for sign in value[1:])
            for name, value in re.findall(r"--(\w+): (#\w+)", block)
        }


def test_texts_can_be_read_by_day_and_by_night() -> None:
    found = list(_palettes())
    assert len(found) == 3
    for palette in found:
        for ground in ("page", "head"):
            for text in ("ink", "soft", "link", "warn", "guess"):
                light, dark = sorted((_luminance(palette[text]), _luminance(palette[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground, palette)


def test_a_strangers_texts_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    data = evaluation(EVIL, **generated(EVIL, text=EVIL), device=EVIL)
    data["results"][0]["text"] = EVIL
    hostile = [data, evaluation("small", **generated(EVIL)), bench(runtime=EVIL, dtype=EVIL)]
    page, beside = made(tmp_path, *hostile, title=EVIL, show_texts=True)
    found = Reader(page)
    assert len(found.named("script")) == 2 and not found.named("img")
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    shown = "".join(found.texts)
    assert "<img src=x onerror=alert(1)>" in shown and "\x1b" not in page and "\u202e" not in page
    assert beside["title"].startswith("</script>")


def test_texts_that_may_be_private_are_shown_only_where_that_is_asked_for(tmp_path: Path) -> None:
    files = [evaluation(**generated("my secret", "own.jsonl")), evaluation("tiny", **generated("a public one"))]
    page, beside = made(tmp_path, *files)
    assert "my secret" not in page and "a public one" in page and "1 completion of texts that may be private" in page
    page, beside = made(tmp_path, *files, show_texts=True)
    assert "my secret" in page and "secret" not in json.dumps(beside)


def test_the_worst_of_the_text_come_first(tmp_path: Path) -> None:
    examples = [{"prompt": "ordinary", "baseline": "one two three", "model": "two two"}]
    worst = [
        {"text": "own.jsonl", "start": 64 * at, "kl": kl, "prompt": f"begin {at}", "model": f"a {at}", "baseline": "b"}
        for at, kl in enumerate([0.25, 3.5, None, 1.125])
    ]
    data = evaluation(generation=[{"text": "own.jsonl"}], examples=examples, worst=worst)
    page, beside = made(tmp_path, data, show_texts=True)
    places = [page.index(each) for each in ("begin 2", "begin 1", "begin 3", "begin 0", "ordinary")]
    assert places == sorted(places) and "KL 3.500, 0 words alike" in page and "KL inf, 0 words alike" in page
    assert "begin" not in json.dumps(beside)
    hidden, _ = made(tmp_path, data)
    assert "begin 2" not in hidden and "5 completions of texts that may be private" in hidden
    with pytest.raises(PrunekitError, match=r"kl"):
        made(tmp_path, evaluation(generation=[{"text": "own.jsonl"}], worst=[{**worst[0], "kl": "much"}]))


def test_each_plan_has_its_own_reasons(tmp_path: Path) -> None:
    """Equal words of two plans stand under both; of a plan and of a model that was made by it and trained, once."""
    words = {"layers": [{"index": 0, "words": "FFN whole"}, {"index": 1, "words": "gone"}]}
    plan = tiny_plan()
    first = replace(plan, provenance={**plan.provenance, "why": words})
    other = replace(first, layers=first.layers[:1])
    trained = replace(first, provenance={**first.provenance, "recovery": [{"tokens": 5}]})
    for name, each in (("a", first), ("b", other), ("c", trained)):
        each.save(tmp_path / f"{name}.json")
    page, _ = made(tmp_path, *(tmp_path / f"{name}.json" for name in "abc"))
    part = page[page.index('id="why"') : page.index('id="figures"')]
    assert re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', part) == [
        ("a, layer 0", "FFN whole"),
        ("a, layer 1", "gone"),
        ("b, layer 0", "FFN whole"),
        ("b, layer 1", "gone"),
    ]


def test_measured_and_predicted_are_drawn_differently(tmp_path: Path) -> None:
    page, _ = made(tmp_path, candidates(tmp_path / "cand"))
    assert "hollow diamonds and dashed lines are not" in page
    plots = page[page.index('id="tradeoff"') : page.index('id="widths"')]
    assert "var(--guess)" in plots and "var(--ffn)" in plots and "stroke-dasharray" in plots
    assert "Loss added against file size: dense at" in plots
    # Texts take the page's colour, not black.
    assert re.search(r"<text[^>]*var\(--ink\)", plots)


@pytest.mark.parametrize(("largest", "mark"), [(3.0, "0.1"), (0.23, "0.3")])
def test_marks_are_plain_numbers_and_few_ranges_are_wide(tmp_path: Path, largest: float, mark: str) -> None:
    """Beside 8 bits, which cost next to nothing, 0.23 nats are no wide range: the scale stays even."""
    file = candidates(tmp_path / "cand")
    data = json.loads(file.read_text())
    losses = [row["figures"]["loss_added"] for row in data["rows"]]
    for each, value in zip([each for each in losses if each["value"]], (0.001, largest), strict=False):
        each.update(value=value, low=None, high=None)
    file.write_text(json.dumps(data))
    page, _ = made(tmp_path, file)
    assert "mathdefault" not in page and re.search(rf"<text[^>]*>{re.escape(mark)}</text>", page)


def test_the_front() -> None:
    def point(letter: str, x: float, y: float) -> Point:
        return Point(letter, Figure(x, "exact"), Figure(y, "measured"))

    points = [point("a", 1, 3), point("b", 2, 1), point("c", 2, 2), point("d", 3, 1), point("e", 4, 0)]
    assert [each.letter for each in unbeaten(points)] == ["a", "b", "e"]


def test_a_prediction_is_not_on_the_front_of_what_was_measured(tmp_path: Path) -> None:
    def point(letter: str, x: float, y: float, status: str = "measured", setup: str | None = None) -> Point:
        return Point(letter, Figure(x, status), Figure(y, "measured"), setup)

    dense = point("dense", 1.0, 0.0, "exact")
    guesses = [point("p", 0.5, 0.1, "predicted", "x"), point("q", 0.4, 0.3, "predicted", "x")]
    other = point("r", 0.1, 0.0, "predicted", "y")
    measured = point("m", 0.7, 0.2)
    assert compared([dense, measured, *guesses, other]) == [dense, measured]
    # Where nothing was measured, the predictions of one set-up are compared, and with the dense model.
    assert compared([dense, *guesses, other]) == [dense, *guesses]

    files = [evaluation("small", result(added=0.3, tokens_seen=8192)), bench(0.9), candidates(tmp_path / "cand")]
    page, data = made(tmp_path, *files)
    plots = page[page.index('id="tradeoff"') : page.index('id="widths"')]
    caption = next(
        each for each in re.findall(r"<figcaption>(.*?)</figcaption>", plots) if "told under another" in each
    )
    rows = {row["name"]: row for row in data["rows"] if row["form"] == "checkpoint"}
    small, planned = rows["small"], rows["plan-0.8"]
    assert f"No other model beats {small['row']}, dense. Not compared with them: {planned['row']}," in caption
    # The note below the first table says what the prediction was told under, and so does the JSON.
    assert planned["decision"]["tpot_ratio"]["setup"] == "as candidates says, Test CPU, 2 threads"
    assert small["decision"]["tpot_ratio"]["setup"].startswith("Test CPU, 2 threads, prompt of 128")
    table = page[page.index('id="decision"') : page.index('id="tradeoff"')]
    assert (
        "<strong>Note 1, First token, predicted; Each further token, predicted</strong>: as candidates says, Test CPU, "
        "2 threads. Not compared with the rest of the column." in table
    )
    row = next(each for each in table.split("<tr>") if "plan-0.8" in each)
    assert re.findall(r"([\d.]+)<span class=\"status predicted\">predicted</span><span[^>]*>note 1</span>", row) == [
        "0.820",
        "0.820",
    ]


def test_markup_escapes_all_but_itself() -> None:
    assert element("p", "a < b", element("b", 'x"'), title='"><x') == (
        '<p title="&quot;&gt;&lt;x">a &lt; b<b>x&quot;</b></p>'
    )
    assert element("meta", name="a") == '<meta name="a">' and isinstance(element("p"), Markup)
    assert "<" not in embedded({"a": "</script><!--"})


def test_numbers_that_nothing_has_are_written_all_the_same(tmp_path: Path) -> None:
    data = evaluation()
    data["results"][0] |= {
        "nll_increase": 1e299,
        "perplexity": 10**39,
        "nll_increase_standard_error": 1e298,
        "kl": 1e-300,
    }
    page, _ = made(tmp_path, data, bench(0.8, ttft=1e200, tpot=1e-200))
    assert "1.00e+299" in page and "broken" in page


@pytest.mark.parametrize("name", ["page.pdf", "page", "page.json"])
def test_a_page_is_html(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrunekitError, match=r"its name ends in \.html"):
        prunekit.write_report(write(tmp_path / "a.json", evaluation()), tmp_path / name)


def test_what_is_not_a_page_of_prunekits_is_never_replaced(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", evaluation())
    for name, text in (("page.html", "<!doctype html><p>mine</p>"), ("page.json", '{"mine": 1}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(PrunekitError, match="already exists"):
            write_report(file, tmp_path / "page.html")
        with pytest.raises(PrunekitError, match="that prunekit wrote, so it is not replaced"):
            write_report(file, tmp_path / "page.html", overwrite=True)
        assert (tmp_path / name).read_text() == text
        (tmp_path / name).unlink()
    # What is read is not written over.
    with pytest.raises(PrunekitError, match="is read by this very run"):
        write_report(write(tmp_path / "b.json", evaluation()), tmp_path / "b.html", overwrite=True)
    write_report(file, tmp_path / "page.html")
    write_report(file, tmp_path / "page.html", overwrite=True)


def test_spoiled_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """Whatever is spoiled: a page, or one sentence."""
    rng = random.Random(5)
    refused = 0
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = all_files(folder)
        file = rng.choice(files)
        how = spoil(rng, file)
        try:
            Reader(write_report(files, tmp_path / "page.html", overwrite=True).page.read_text())
        except PrunekitError as error:
            refused += 1
            assert str(error).endswith(".") and len(str(error)) < 1500, (number, file, how)
    assert 15 < refused < 60
