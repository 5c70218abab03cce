"""How the page looks: by day, by night, on a phone and on paper; and what sorts its tables."""

from __future__ import annotations

import base64
import hashlib

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b2330; --soft: #525d6b; --rule: #d3d9e0; --head: #f1f4f7;
  --link: #1d5a9e; --warn: #9a3412; --bar: #ccd3db; --ffn: #2f6fb3; --heads: #b8651b; --guess: #6b46a8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --ink: #e5e9ee; --soft: #a9b3bf; --rule: #3a434e; --head: #1c2229;
    --link: #8cbcf2; --warn: #fdba74; --bar: #4a5460; --ffn: #6ea8e6; --heads: #eca45c; --guess: #c3a7f0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p, ul, dl { max-width: 60rem; margin: .5rem 0; }
li { margin: .25rem 0; }
a { color: var(--link); }
.summary { font-size: 1.1rem; }
.soft, figcaption, caption, .legend, footer { color: var(--soft); }
.legend, figcaption, footer, .of { font-size: .9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; }
.warnings { border-left: .3rem solid var(--warn); padding: .25rem 1rem; margin: 1rem 0; }
.scroll { overflow-x: auto; margin: .75rem 0; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; padding: 0 0 .4rem; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
thead th { background: var(--head); vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--page); }
thead th:first-child { background: var(--head); }
tbody th { font-weight: 600; min-width: 8.2rem; max-width: 16rem; overflow-wrap: anywhere; }
.words td { min-width: 8rem; max-width: 34rem; overflow-wrap: anywhere; }
.unit, .bounds, .status, .also { display: block; font-size: .88em; font-weight: 400; color: var(--soft); }
.bounds, .also { white-space: nowrap; }
.measured { color: var(--soft); }
.predicted, .estimated { color: var(--guess); font-style: italic; }
.contradictory { color: var(--warn); font-weight: 600; }
.none { color: var(--soft); font-style: italic; }
.verdict { font-weight: 600; }
.fails { color: var(--warn); }
.proof { border-left: .2rem solid var(--rule); padding-left: .9rem; margin: .9rem 0 1.4rem; }
.hash { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .82rem; }
figure { margin: 1rem 0; }
figure svg { display: block; height: auto; width: 100%; min-width: 36rem; }
.picture { max-width: 60rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit; }
button.sort {
  font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit;
}
button.sort:hover, button.sort:focus-visible { text-decoration: underline; }
th[aria-sort="ascending"] button.sort::after { content: " \\2191"; }
th[aria-sort="descending"] button.sort::after { content: " \\2193"; }
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --rule: #999; --head: #eee; --link: #000;
    --warn: #7c2d12; --bar: #ccd3db; --ffn: #2f6fb3; --heads: #b8651b; --guess: #553c8a; }
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .2rem .35rem; }
  tbody th, .words td { min-width: 0; }
  .bounds, .also { white-space: normal; }
  figure svg { min-width: 0; }
  figure, tr, .keep { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  thead { display: table-header-group; }
  nav { display: none; }
  tbody th, thead th:first-child { position: static; }
}
"""

# Without it tables stand in the order of the page.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const each of table.querySelectorAll("thead th")) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => {
        const cell = row.cells[place];
        return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
      };
      const compared = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null && y === null) {
          return (up ? 1 : -1) * a.cells[place].textContent.localeCompare(b.cells[place].textContent);
        }
        if (x === null || y === null) return x === null ? 1 : -1;
        return (up ? 1 : -1) * (x - y);
      };
      body.append(...[...body.rows].sort(compared));
    });
  });
}
"""


def policy() -> str:
    """What the page may do: show itself, and run the one script that is in it."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
