"""The page in a real browser: it stands without a network and without complaints, on a phone, by night and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunekit.report.write import write_report
from tests.support.browser import Browser, browser, find_browser
from tests.support.report_files import all_files

pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium")

TABLE = "document.querySelector('#decision ~ .scroll table')"
LETTERS = f"[...{TABLE}.tBodies[0].rows].map(row => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    prices = folder / "prices.toml"
    prices.write_text("dollars_per_hour = 1.5\n")
    files = all_files(folder)
    return write_report(files, folder / "page.html", prices=prices, title="A" * 200, show_texts=True).page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_stands(chromium: Browser, page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    chromium.open(page, width=width, dark=dark)
    assert chromium.requests == [page.resolve().as_uri()] and chromium.complaints == []
    wide, ground = chromium.evaluate(
        "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    assert wide <= width
    assert ground == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")
    # Texts of the pictures take the page's colour.
    ink = chromium.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink == ("rgb(229, 233, 238)" if dark else "rgb(27, 35, 48)")
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_its_script_runs_and_sorts(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    before = chromium.evaluate(LETTERS)
    values = f"[...{TABLE}.tBodies[0].rows].map(row => row.cells[1].dataset.sort ?? null)"
    for order in ("ascending", "descending"):
        chromium.evaluate(f"{TABLE}.querySelectorAll('thead button')[1].click() ?? null")
        head = chromium.evaluate(f"{TABLE}.querySelectorAll('thead th')[1].getAttribute('aria-sort')")
        assert head == order
        found = [each for each in chromium.evaluate(values) if each is not None]
        assert found == sorted(found, key=float, reverse=order == "descending") and len(found) > 2
        # What has no value stands at the end.
        assert chromium.evaluate(values)[: len(found)] == found
    assert sorted(chromium.evaluate(LETTERS)) == sorted(before) and chromium.complaints == []


def test_a_script_of_a_stranger_would_not_run(chromium: Browser, page: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "page.html"
    spoiled.write_text(page.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>"))
    chromium.open(spoiled)
    assert chromium.evaluate("document.title") != "taken" and chromium.complaints


def test_it_can_be_printed(chromium: Browser, page: Path, tmp_path: Path) -> None:
    # The width of A4 across, less its margins.
    chromium.open(page, media="print", width=1032)
    wide = chromium.evaluate("Math.max(...[...document.querySelectorAll('table, svg')].map(each => each.scrollWidth))")
    assert wide <= 1032
    chromium.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
