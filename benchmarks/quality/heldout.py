"""The three texts that quality is measured on and that nothing is calibrated on, out of what others publish.

    apt-get download anarchism debian-handbook && dpkg -x anarchism_*.deb debs && dpkg -x debian-handbook_*.deb debs
    python benchmarks/quality/heldout.py --debs debs --wikitext wikitext-2/test.txt --output texts/

`politics.txt` is An Anarchist FAQ and `handbook.txt` the Debian Administrator's Handbook: their paragraphs in the order
of file names, a blank line between two. `wikitext2_test.txt` is WikiText-2's test split (a `wiki.test.tokens`, as it
lies in many repositories) with its spaces around punctuation taken out again; rare words stay `<unk>`.
"""

from __future__ import annotations

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path

PLACES = {
    "politics": "usr/share/doc/anarchism/html",
    "handbook": "usr/share/doc/debian-handbook/html/en-US",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debs", type=Path, required=True, help="folder in which both packages are unpacked")
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, place in PLACES.items():
        files = sorted((options.debs / place).glob("*.html"))
        if not files:
            parser.error(f"There are no pages in {options.debs / place}; unpack the package with dpkg -x.")
        found = (paragraphs(file.read_text(encoding="utf-8", errors="replace")) for file in files)
        _write(options.output / f"{name}.txt", "\n\n".join(each for page in found for each in page))
    _write(options.output / "wikitext2_test.txt", detokenised(options.wikitext.read_text(encoding="utf-8")))


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path}: {len(text):,} characters")


class _Paragraphs(HTMLParser):
    """Collects the text of `<p>` and `<div class="para">`."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" or (tag == "div" and dict(attrs).get("class") == "para"):
            self._end()
            self._open.append(tag)
        elif tag == "div" and self._open:
            self._open.append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or tag not in ("p", "div"):
            return
        if self._open.pop():
            self._end()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._text.append(data)

    def _end(self) -> None:
        self.made.append(" ".join("".join(self._text).split()))
        self._text = []


def paragraphs(page: str, least: int = 80) -> list[str]:
    """The paragraphs of an HTML page that have ``least`` characters, white space made single spaces."""
    parser = _Paragraphs()
    parser.feed(page)
    parser.close()
    return [text for text in parser.made if len(text) >= least]


def detokenised(text: str) -> str:
    """WikiText's tokens as they are written: `film , television` becomes `film, television`."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$£]) ", r"\1", text)
    text = re.sub(r" (['’](?:s|t|d|m|re|ll|ve)\b|n't\b|['’] )", lambda found: found[1], text)
    # Quotation marks by turns open and close, line by line.
    return "\n".join(_quoted(line.strip()) for line in text.splitlines()).strip()


def _quoted(line: str) -> str:
    parts = line.split('"')
    made = parts[0]
    for place, part in enumerate(parts[1:]):
        opens = place % 2 == 0
        made = made + '"' + part.lstrip(" ") if opens else made.rstrip(" ") + '"' + part
    return made


if __name__ == "__main__":
    main()
