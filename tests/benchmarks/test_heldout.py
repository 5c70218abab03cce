"""benchmarks/quality/heldout.py: text out of pages and out of WikiText's tokens."""

from __future__ import annotations

import pytest

from benchmarks.quality.heldout import detokenised, paragraphs


def test_paragraphs_of_a_page() -> None:
    long = "This paragraph has markup and " + "enough words " * 8
    page = f"""<html><body><ul><li>Prev</li></ul><h2>A title</h2>
        <p>{long}<b>bold</b>
        end</p><p>short</p>
        <div class="para">{long}<div class="note"><div class="para">{long}inside</div></div> after</div>
        <p>{long}not closed<p>{long}last</p></body></html>"""
    tidy = " ".join(long.split())
    made = paragraphs(page)
    assert made[0] == f"{tidy} bold end"
    assert [text.removeprefix(tidy).strip() for text in made[1:]] == ["", "inside", "not closed", "last"]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("film , television and ( 2004 ) .", "film, television and (2004)."),
        ("a guest @-@ starring role of 1 @,@ 000 , 2 @.@ 5", "a guest-starring role of 1,000, 2.5"),
        ('a role as " Craig " in " Teddy \'s Story " here', 'a role as "Craig" in "Teddy\'s Story" here'),
        ("they don 't , she 's <unk>", "they don't, she's <unk>"),
    ],
)
def test_wikitext_reads_as_it_was_written(tokens: str, text: str) -> None:
    assert detokenised(tokens) == text
