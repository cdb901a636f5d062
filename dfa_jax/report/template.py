"""The HTML around a recipe's page: no script, nothing loaded from elsewhere."""

import string

PAGE = string.Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --paper: #f6f7f9; --card: #ffffff; --ink: #24292f; --soft: #5d6670; --line: #e1e4e8;
  --good: #116329; --bad: #a4330f; --link: #0072b2; --code: #f0f2f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d0f13; --card: #15181d; --ink: #dfe3e8; --soft: #98a1ab; --line: #2c323a;
    --good: #57c477; --bad: #ff9a66; --link: #4db2ee; --code: #1d2127;
  }
  .chip { background: var(--dark) !important; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; }
h2 { font-size: 1.05rem; margin: 0 0 .8rem; }
p { margin: 0 0 .7rem; max-width: 78ch; }
.paper { color: var(--soft); margin-bottom: 1rem; }
.badges { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 24px; }
.badges span {
  border: 1px solid var(--line); border-radius: 99px; padding: 2px 12px;
  font-size: .82rem; color: var(--soft); background: var(--card);
}
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin-bottom: 20px;
}
.verdicts { margin: 0; padding: 0; list-style: none; }
.verdicts li { padding: 3px 0; }
.chip {
  display: inline-block; width: .68em; height: .68em; border-radius: 50%;
  margin-right: .55em; background: var(--light);
}
picture img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums;
}
th, td {
  padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th, tr > th:first-child { font-weight: 500; }
tr.group th { padding-top: 16px; font-weight: 700; }
table tr:last-child > * { border-bottom: 0; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.good, .bad, .wrap { white-space: normal; min-width: 8.2em; }
.wrap { min-width: 11em; }
.note { color: var(--soft); font-size: .85rem; margin: 14px 0 0; max-width: none; }
pre {
  background: var(--code); border-radius: 8px; padding: 12px 14px; margin: 4px 0 16px;
  overflow-x: auto; font-size: .88rem;
}
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; font-size: .9rem;
}
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
details table, details dl { margin: 12px 0; }
details + details { margin-top: 10px; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="paper">Paper: $paper</p>
<div class="badges">$badges</div>
<section>
<h2>Verdict</h2>
<ul class="verdicts">$verdicts</ul>
</section>
<section>
<picture>
<source srcset="$dark" media="(prefers-color-scheme: dark)">
<img src="$light" alt="$alt">
</picture>
<p class="note">$figure_note</p>
</section>
<section>
<h2>Results</h2>
<div class="scroll"><table>$table</table></div>
<p class="note">$caption</p>
</section>
<section>
<h2>What was run</h2>
$header
<pre><code>$command</code></pre>
<dl>$facts</dl>
</section>
<section>
<details>
<summary>Settings</summary>
<dl>$settings</dl>
</details>
<details>
<summary>$runs_title</summary>
<div class="scroll"><table>
<thead>$runs_head</thead>
<tbody>$runs</tbody>
</table></div>
</details>
</section>
</main>
</body>
</html>
"""
)
