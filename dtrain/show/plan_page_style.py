"""Colours and layout of the plan's page: light and dark by the reader's own setting, one column on a phone."""

from __future__ import annotations

from collections.abc import Sequence

PALETTE: Sequence[tuple[str, str]] = (
    ("#3b6fd4", "#6f9df2"), ("#0f9d9d", "#3fc4c0"), ("#8b5cd6", "#b08cf0"), ("#d98a1f", "#efb04e"),
    ("#cf4a5c", "#f07f8d"), ("#4f9a45", "#7dc473"), ("#7a828e", "#98a2b0"), ("#a8673a", "#d29a6c"),
    ("#b0539b", "#dd8fcb"),
)  # fmt: skip
"""(on light, on dark) of parts 0, 1, 2 …: told apart by brightness too."""


def style() -> str:
    return CSS.replace("/*light*/", _variables(0)).replace("/*dark*/", _variables(1))


def _variables(theme: int) -> str:
    return "".join(f"--part-{number}:{pair[theme]};" for number, pair in enumerate(PALETTE))


CSS = """
:root { color-scheme: light dark; --ground:#f6f7f9; --card:#ffffff; --text:#1b2330; --soft:#5c6675; --line:#dfe3e9;
  --free:#eef0f4; --good:#1f7a3d; --good-ground:#e2f4e7; --near:#8a5a00; --near-ground:#fdf0d2; --bad:#b3261e;
  --bad-ground:#fde4e1; /*light*/ }
@media (prefers-color-scheme: dark) { :root { --ground:#11151b; --card:#1a2029; --text:#e8ecf2; --soft:#9aa6b6;
  --line:#2d3643; --free:#252d38; --good:#7ddb98; --good-ground:#16351f; --near:#f3c667; --near-ground:#3b2f10;
  --bad:#ff9d94; --bad-ground:#451c19; /*dark*/ } }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--text); line-height:1.5;
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
main { max-width:64rem; margin:0 auto; padding:1.5rem 1rem 3rem; }
header { display:flex; flex-wrap:wrap; gap:.4rem 1rem; align-items:center; margin-bottom:1rem; }
h1 { font-size:1.5rem; line-height:1.25; margin:0; overflow-wrap:anywhere; }
h1 small { display:block; font-size:1rem; font-weight:400; color:var(--soft); }
h2 { font-size:1.1rem; margin:0 0 .75rem; }
section { background:var(--card); border:1px solid var(--line); border-radius:.75rem; padding:1.1rem 1.2rem;
  margin-top:1rem; }
.verdict { margin-left:auto; padding:.3rem .9rem; border-radius:2rem; font-weight:600; white-space:nowrap; }
.good { color:var(--good); background:var(--good-ground); } .near { color:var(--near); background:var(--near-ground); }
.bad { color:var(--bad); background:var(--bad-ground); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(12rem,1fr)); gap:1rem; }
.tile { background:var(--card); border:1px solid var(--line); border-radius:.75rem; padding:.9rem 1.2rem; }
.tile b { display:block; font-size:1.6rem; line-height:1.2; font-variant-numeric:tabular-nums; }
.tile span, .soft { color:var(--soft); font-size:.875rem; }
.tile span:first-child { text-transform:uppercase; letter-spacing:.05em; font-size:.75rem; }
.rows { display:grid; grid-template-columns:max-content minmax(6rem,1fr) max-content; gap:.55rem .8rem;
  align-items:center; grid-auto-flow:row dense; }
.rows .name { grid-column:1; } .rows .bar { grid-column:2; } .rows .amount { grid-column:3; }
.rows .amount { text-align:right; font-variant-numeric:tabular-nums; }
.bar { position:relative; display:flex; height:1.5rem; border-radius:.3rem; background:var(--free); }
.bar i { height:100%; min-width:0; } .bar i:first-child { border-radius:.3rem 0 0 .3rem; }
.bar .edge { position:absolute; top:-.25rem; bottom:-.25rem; border-left:2px solid var(--text); }
.bar .between { position:absolute; top:calc(50% - 1px); height:2px; background:var(--text); min-width:2px; }
.bar .over { position:absolute; right:auto;
  background:repeating-linear-gradient(-45deg,var(--bad) 0 2px,transparent 2px 7px); }
.peak { font-weight:600; }
.legend { display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; margin:1rem 0 0; padding:0; list-style:none;
  font-size:.9rem; }
.legend + .rows { margin-top:1.2rem; }
.legend i { display:inline-block; width:.8rem; height:.8rem; border-radius:.2rem; margin-right:.4rem; }
.wide { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:.9rem; }
th, td { padding:.4rem .8rem .4rem 0; text-align:left; border-bottom:1px solid var(--line); vertical-align:top; }
th { color:var(--soft); font-weight:500; } tr:last-child td { border-bottom:0; }
.number { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
tr.front td { font-weight:600; } tr.front td .soft { font-weight:400; }
ul { margin:0; padding-left:1.2rem; } li { margin:.25rem 0; }
code { font:.85rem/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere; }
.way { margin:.6rem 0 0; } .way code { display:block; margin-top:.25rem; padding:.5rem .7rem; border-radius:.4rem;
  background:var(--free); }
details { margin-top:1rem; } summary { cursor:pointer; color:var(--soft); }
svg { display:block; width:100%; height:auto; } svg text { fill:var(--soft); font-size:12px; }
svg .axis { stroke:var(--line); } svg .other { fill:var(--part-6); opacity:.45; }
svg .best { fill:var(--part-0); } svg .name { fill:var(--text); font-weight:600; }
svg .way-down { fill:none; stroke:var(--part-0); stroke-width:1.5; opacity:.6; }
footer { color:var(--soft); font-size:.85rem; margin-top:1.5rem; overflow-wrap:anywhere; }
@media (max-width:36rem) { .rows { grid-template-columns:1fr max-content; gap:.15rem .8rem; }
  .rows .bar { grid-column:1 / -1; margin-bottom:.6rem; } .rows .amount { grid-column:2; }
  svg text { font-size:21px; }
  .verdict { margin-left:0; } .tiles { grid-template-columns:1fr 1fr; gap:.6rem; } .tile { padding:.7rem .8rem; }
  .wide table { min-width:30rem; }
  .tile b { font-size:1.25rem; } section { padding:.9rem; } th, td { padding-right:.5rem; } }
@media print { body { background:none; } section, .tile { break-inside:avoid; } }
"""
