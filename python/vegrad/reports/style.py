"""The style of a page, and of a notebook's outputs: light and dark, on a phone and on paper."""

from __future__ import annotations

# Text on its ground has a contrast of at least 4.5, which tests/reports/test_page.py works out.
LIGHT = """
--ground: #f3f5f7; --card: #ffffff; --ink: #17212b; --soft: #4d5a67; --line: #d9dfe5;
--shade: #eef1f4; --good: #146c43; --good-ground: #e3f4ea; --warning: #8a4b00;
--warning-ground: #fdf0dc; --alarm: #b3261e; --alarm-ground: #fdeae8; --gradient: #00707a;
--weights: #0072b2; --derivative: #d55e00; --faint: #8793a0; --tint: .62;
"""
DARK = """
--ground: #0f1418; --card: #182026; --ink: #e9eef2; --soft: #a9b6c2; --line: #303b44;
--shade: #212b33; --good: #77d6a0; --good-ground: #14301f; --warning: #f3bd6c;
--warning-ground: #33260f; --alarm: #ff9a90; --alarm-ground: #3d1a17; --gradient: #4ec5cc;
--weights: #57b0e6; --derivative: #ff9b57; --faint: #7c8995; --tint: .7;
"""

PARTS = """
* { box-sizing: border-box; }
h1, h2, h3, p, ul, ol, dl, dd, figure { margin: 0; padding: 0; }
ul, ol { list-style: none; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 40px 0 14px; }
h3 { font-size: 1.05rem; line-height: 1.35; }
a { color: inherit; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.whole { white-space: nowrap; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; }
.good { --mark: var(--good); --mark-ground: var(--good-ground); }
.warning { --mark: var(--warning); --mark-ground: var(--warning-ground); }
.alarm { --mark: var(--alarm); --mark-ground: var(--alarm-ground); }
.word { color: var(--mark); font-weight: 700; display: inline-flex; align-items: center;
  gap: .5em; }
.word svg { width: 1.25em; height: 1.25em; flex: none; }

.verdict { background: var(--mark-ground); border-bottom: 1px solid var(--line);
  border-top: 6px solid var(--mark); padding: 26px 0 26px; }
.verdict > div { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
.headline { font-size: clamp(1.45rem, 1rem + 2.1vw, 2.3rem); line-height: 1.22;
  font-weight: 700; letter-spacing: -.012em; max-width: 36em; text-wrap: balance; }
.verdict .word { font-size: 1.15rem; margin-bottom: 8px; }
.verdict .more { font-size: 1.1rem; margin-top: 10px; max-width: 60em; }
.verdict .network { color: var(--soft); margin-top: 14px; }

.findings > li { border-left: 6px solid var(--mark); margin-bottom: 14px; }
.findings header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; }
.findings .message { margin: 6px 0 10px; }
.findings header + .advice { margin-top: 8px; }
.advice { background: var(--shade); border-radius: 8px; padding: 10px 14px; }
.advice b { display: block; font-size: .85rem; color: var(--soft); font-weight: 600; }
dl.words dt { font-weight: 600; margin-top: 10px; } dl.words dd { max-width: 60em; }
main > details { margin-bottom: 16px; }
dl.numbers { display: flex; flex-wrap: wrap; gap: 8px 26px; margin-top: 12px; }
dl.numbers dt { font-size: .82rem; color: var(--soft); }
dl.numbers dd { font-variant-numeric: tabular-nums; font-weight: 600; }

.told { list-style: disc; padding-left: 1.2em; } .told li { margin-bottom: 4px; }
.row { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure.card { margin-bottom: 16px; min-width: 0; }
.row figure.card { margin-bottom: 0; }
.row.spaced { margin-top: 16px; }
.row.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; justify-content: space-between;
  align-items: baseline; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 6px 0 12px; font-size: .88rem; }
.legend li { display: flex; align-items: center; gap: 7px; }
.legend svg { width: 26px; height: 12px; flex: none; overflow: visible; }
.plot { padding: 4px 10px 0 52px; }
.plot.named { padding-left: 112px; } h4 { margin: 0; font-size: .92rem; font-weight: 600; }
.above-plot { display: flex; flex-wrap: wrap; gap: 0 18px; margin-top: 12px; }
.above-plot .legend { margin: 0 0 8px; } figcaption + .above-plot { margin-top: 6px; }
.plot p { text-align: center; color: var(--soft); font-size: .85rem; }
.note { margin-top: 12px; }
.board { background: #26332f; color: #e8e6df; border-color: #26332f; }
.board .soft, .board .plot p { color: #a9bab3; }

svg.chart { display: block; overflow: visible; font-size: 12px; }
.chart text { fill: var(--ink); }
.chart .tick { fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .faint-text { fill: var(--soft); }
.chart .alarm-text { fill: var(--alarm); font-weight: 600; paint-order: stroke;
  stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.board .chart .tick { fill: #a9bab3; } .board .chart .grid { stroke: #3a4944; }
svg path { vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.line { fill: none; stroke-width: 2; }
.dots { fill: none; stroke-linecap: round; stroke-width: 6.5; }
.dots.small { stroke-width: 4; } .dots.large { stroke-width: 9; }
.dots.middle { stroke-width: 4.6; } .thick { stroke-width: 3.5; }
.thin { stroke-width: 1.2; } .dashed { stroke-dasharray: 6 4; stroke-width: 1.5; }
.dotted { stroke-dasharray: 1.5 3; stroke-width: 1.1; opacity: .5; }
.s-ink { stroke: var(--ink); } .s-soft { stroke: var(--soft); } .s-faint { stroke: var(--faint); }
.s-gradient { stroke: var(--gradient); } .s-alarm { stroke: var(--alarm); }
.s-card { stroke: var(--card); } .s-weights { stroke: var(--weights); }
.s-derivative { stroke: var(--derivative); }
.f-weights { fill: var(--weights); opacity: var(--tint); }
.f-derivative { fill: var(--derivative); opacity: var(--tint); }
.f-expected { fill: var(--ink); opacity: .14; } .f-alarm { fill: var(--alarm); opacity: .13; }
.s-chalk { stroke: #e8e6df; } .s-way { stroke: #8fa39b; }
.s-hop0 { stroke: #6fb7ec; } .s-hop1 { stroke: #53d8ab; } .s-hop2 { stroke: #f4e04d; }
.s-hop3 { stroke: #ff8a5c; } .mark { stroke: #26332f; stroke-width: 1; }
.f-hop0 { fill: #6fb7ec; } .f-hop1 { fill: #53d8ab; } .f-hop2 { fill: #f4e04d; }
.f-hop3 { fill: #ff8a5c; } .board .chart .faint-text { fill: #e8e6df; }
.spike + .spike { margin-top: 14px; } .pixels { image-rendering: pixelated; }
.f-finding { fill: var(--alarm); }
.f-spike { fill: var(--derivative); } .f-lost { fill: #d0392b; } .f-infinite { fill: #e75ae0; }
.mark.f-finding, .mark.f-spike { stroke: var(--card); }
.hint { fill: transparent; } .hint:hover { fill: var(--ink); opacity: .1; }

.scroll { overflow: auto; max-height: 75vh; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); }
.scroll:focus-visible { outline: 3px solid var(--weights); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.above { margin-bottom: 12px; color: var(--soft); }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; z-index: 2; background: var(--shade); font-weight: 600;
  vertical-align: bottom; line-height: 1.25; white-space: normal; }
tbody th { position: sticky; left: 0; z-index: 1; background: var(--card); font-weight: 600; }
thead th:first-child { left: 0; z-index: 3; }
.words { text-align: left; white-space: normal; min-width: 18em; }
.brief { width: fit-content; max-width: 100%; }
.brief th:first-child, .names th:first-child { text-align: left; white-space: normal; }
p + .scroll, p + .findings { margin-top: 12px; }
td.away { font-weight: 700; color: var(--alarm); }
tr.marked th, tr.marked td { background: var(--alarm-ground); }
tr.cured th, tr.cured td { background: var(--good-ground); }
"""

STYLE = (
    f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT} --ground: #ffffff; }} }}
"""
    + PARTS
    + """
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
footer { color: var(--soft); font-size: .88rem; padding-top: 28px; padding-bottom: 40px; }
@media (max-width: 560px) {
  main, footer, .verdict > div { padding-left: 14px; padding-right: 14px; }
  .card { padding: 14px; } .plot { padding-left: 46px; padding-right: 4px; }
  .plot.named { padding-left: 78px; } .named svg.chart { font-size: 9.5px; }
  th, td { padding: 5px 9px; }
}
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 11pt; } h2 { break-after: avoid; }
  .scroll { max-height: none; overflow: visible; } thead th, tbody th { position: static; }
  table { font-size: 8pt; } th, td { padding: 2px 6px; } .words { min-width: 8em; }
  figure, .findings > li, tr { break-inside: avoid; }
}
"""
)

# The themes of Jupyter, Colab, VS Code and sites made by Sphinx; where there is none, the system's.
DARK_THEMES = (
    '[data-jp-theme-light="false"]',
    ".vscode-dark",
    ".vscode-high-contrast",
    '[theme="dark"]',
    '[data-theme="dark"]',
)
LIGHT_THEMES = (
    '[data-jp-theme-light="true"]',
    ".vscode-light",
    '[theme="light"]',
    '[data-theme="light"]',
)


def _themed(themes: tuple[str, ...], colours: str) -> str:
    return f":is({', '.join(themes)}) .vegrad {{ {colours} }}"


# Every rule is nested in the class of an output, written twice to weigh more than a notebook's own.
NOTEBOOK = (
    f"""
.vegrad {{ color-scheme: light; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ .vegrad {{ color-scheme: dark; {DARK} }} }}
{_themed(LIGHT_THEMES, f"color-scheme: light; {LIGHT}")}
{_themed(DARK_THEMES, f"color-scheme: dark; {DARK}")}
.vegrad.vegrad {{
font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
background: var(--ground); color: var(--ink); border: 1px solid var(--line); border-radius: 12px;
max-width: 1000px; margin: 4px 0; overflow: hidden; overflow-wrap: anywhere; text-align: left;
{PARTS.replace("rem", "em").strip()}
"""
    + """
.verdict { padding: 16px 0; border-top-width: 4px; }
.verdict > div { padding: 0 16px; }
.headline { font-size: 1.3em; margin: 0; line-height: 1.35; max-width: none; text-wrap: wrap; }
h2, h3 { font-weight: 650; } dt { font-weight: 400; }
.verdict .more, .verdict .network { font-size: 1em; margin-top: 6px; }
.inside { padding: 14px 16px 16px; }
.inside > * + * { margin-top: 12px; }
.inside > h2 { font-size: 1.15em; margin-top: 20px; } .inside > h2:first-child { margin-top: 0; }
.inside figure.card { margin-bottom: 0; }
.card { padding: 14px 16px; }
.scroll { max-height: 480px; }
h2, h3, p, li, dt, dd, table, tr, th, td, figcaption { color: inherit; }
.row { margin-left: 0; margin-right: 0; } .row::before, .row::after { content: none; }
summary { display: list-item; cursor: pointer; font-weight: 600; padding: 4px 0; }
pre { margin: 8px 0 0; padding: 12px 14px; overflow: auto; border-radius: 8px; border: 0;
  background: var(--shade); color: var(--ink); font: 13px/1.45 ui-monospace, "SF Mono", Menlo,
  Consolas, monospace; white-space: pre; }
table { margin: 0; table-layout: auto; border: 0; }
thead th { background: var(--shade); } thead { border: 0; }
th, td { max-width: none; border-width: 0 0 1px; vertical-align: baseline; line-height: 1.4; }
tbody tr, tbody tr:nth-child(n), tbody tr:hover { background: none; }
dt, dd { float: none; width: auto; margin: 0; padding: 0; }
li { margin: 0; } li + li { margin-top: 0; }
@media (max-width: 560px) { .inside { padding: 10px; } .card { padding: 12px; }
  .plot { padding-left: 44px; padding-right: 4px; } th, td { padding: 5px 9px; } }
}
"""
)
