# SPDX-License-Identifier: MIT
"""A report as one HTML page: checks, memory against the budget, latency by layer. No assets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from bitnet_edge.cli.text import counted, size
from bitnet_edge.validate.report import Report

__all__ = ["STYLE", "page"]

_WIDTH = 960  # of a drawing, in its own units
_LABELS = 150  # of which names take, at the left
_ROW = 26
_COLOURS = 8  # the palette below

_STAGES = {  # of the measured process
    "interpreter": "imported",
    "loaded": "model loaded",
    "prefilled": "context prefilled",
    "decoded": "and decoded",
    "run": "model run",
}

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --quiet: #59636e; --line: #d8dee4;
  --pass: #1a7f37; --fail: #cf222e; --skip: #737c87; --track: #eef1f4;
  --c0: #2f6fb7; --c1: #e08a1e; --c2: #3a9a6b; --c3: #b0518f; --c4: #7a68c4; --c5: #b8a12a;
  --c6: #3aa6b5; --c7: #c45b4d; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --text: #e2e8ee; --quiet: #97a3b0;
  --line: #323a44; --pass: #4ac26b; --fail: #ff6a69; --skip: #8b949e; --track: #222932;
  --c0: #5b9be6; --c1: #f0a548; --c2: #57bd8a; --c3: #d57bb5; --c4: #a091ea; --c5: #d6bf4c;
  --c6: #5cc5d3; --c7: #e5806f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 48px; max-width: 1010px; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 36px 0 10px; }
p { margin: 0 0 8px; color: var(--quiet); }
.badge { float: right; padding: 5px 14px; border-radius: 14px; color: #fff; font-weight: 600;
  background: var(--pass); } .badge.fail { background: var(--fail); }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 6px 12px 6px 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--quiet); font-size: 13px; }
td.status { font-weight: 600; } .pass { color: var(--pass); } td.fail { color: var(--fail); }
.skip { color: var(--skip); } td.time, th.time { text-align: right; padding-right: 0;
  font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--quiet); }
td.name { white-space: nowrap; } td.line { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--text); font-size: 13px; } svg .quiet { fill: var(--quiet); font-size: 12px; }
svg .track { fill: var(--track); } svg .limit { stroke: var(--fail); stroke-width: 2; }
svg .over { fill: var(--fail); }
.below { margin-top: 10px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 8px 0 0;
  list-style: none; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 6px; }
"""


def page(report: Report) -> str:
    """Return the page."""
    verdict = "passed" if report.passed else "failed"
    machine = report.machine
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.model or report.file)} on {escape(report.device)}: {verdict}"
        f"</title><style>{STYLE}</style></head><body>",
        f'<span class="badge{"" if report.passed else " fail"}">{verdict}</span>',
        f"<h1>{escape(report.model or 'unreadable')} on {escape(report.device)}</h1>",
        f"<p>{escape(report.file)} &middot; {escape(report.summary)}<br>bitnet-edge "
        f"{escape(machine['bitnet_edge'])}, Python {escape(machine['python'])}, "
        f"{escape(machine['system'])} {escape(machine['machine'])} with "
        f"{escape(', '.join(machine['instruction_sets']))}</p>",
        *_checks(report),
        *_memory(report.memory),
        *_speed(report.speed),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _checks(report: Report) -> Iterator[str]:
    yield "<h2>Checks</h2><table><tr><th></th><th>check</th><th>found</th>"
    yield '<th class="time">time</th></tr>'
    for check in report.checks:
        yield (
            f'<tr><td class="status {check.status}">{check.status}</td>'
            f'<td class="name">{escape(check.name)}</td><td class="line">{escape(check.line)}</td>'
            f'<td class="time">{1000 * check.seconds:.0f} ms</td></tr>'
        )
    yield "</table>"


# -- memory -----------------------------------------------------------------------------------


def _memory(memory: Mapping[str, Any]) -> Iterator[str]:
    classes: Mapping[str, int] = memory.get("classes", {})
    if not classes:
        return
    allowed = memory["allowed"]
    rows = [("planned", dict(classes))]
    measured = memory.get("measured")
    stages = measured["stages"] if measured else ()
    rows += [(_STAGES[stage["stage"]], {"measured": stage["private"]}) for stage in stages]
    yield "<h2>Private memory against the budget</h2>"
    yield _bars(rows, _palette([*classes, "measured"]), limit=allowed, unit=size)
    yield _legend(classes, _palette(classes), size)
    if not measured:
        return
    yield (
        '<p class="below">'
        f"Measured in a fresh process under a limit of {size(measured['limit'])} that the "
        f"system enforces ({escape(measured['mechanism'])}), page cache "
        f"{'counted' if measured['counts_page_cache'] else 'not counted'}.</p>"
    )
    if measured["peak"] is not None:
        yield "<h2>Private memory and page cache together, under the hard limit</h2>"
        row = ("at the peak", {"charged to the group": measured["peak"]})
        yield _bars([row], {"charged to the group": 0}, limit=measured["limit"], unit=size)


# -- latency ----------------------------------------------------------------------------------


def _speed(speed: Mapping[str, Any]) -> Iterator[str]:
    layers: Sequence[Mapping[str, Any]] = speed.get("layers", ())
    if not layers:
        return
    totals: dict[str, float] = {}
    for layer in layers:
        for op, us in layer["us"].items():
            totals[op] = totals.get(op, 0.0) + us
    ranked = sorted(totals, key=lambda op: -totals[op])
    ops = ranked if len(ranked) <= _COLOURS else [*ranked[: _COLOURS - 1], "other"]
    rows = []
    for layer in layers:
        parts = dict.fromkeys(ops, 0.0)
        for op, us in layer["us"].items():
            parts[op if op in parts else "other"] += us
        name = layer["layer"] if layer["layer"].startswith("layers.") else next(iter(layer["us"]))
        rows.append((name, parts))
    if "other" in ops:
        totals["other"] = sum(totals[op] for op in ranked[_COLOURS - 1 :])
    yield "<h2>Time of a decoded token by layer</h2>"
    yield (
        f"<p>{speed['decode_us_per_token']:.1f} &micro;s a token with sampling and text, on "
        f"{counted(speed['threads'], 'thread')}; prefill "
        + ", ".join(
            f"of {p['tokens']} tokens at {p['tokens_per_second']:.0f} tokens/s"
            for p in speed["prefill"]
        )
        + ".</p>"
    )
    yield _bars(rows, _palette(ops), unit=_microseconds)
    yield _legend({op: totals[op] for op in ops}, _palette(ops), _microseconds)


def _microseconds(us: float) -> str:
    return f"{us:.1f} \u00b5s" if us < 1000 else f"{us / 1000:.1f} ms"


# -- drawing ----------------------------------------------------------------------------------


def _palette(names: Sequence[str] | Mapping[str, Any]) -> dict[str, int]:
    return {name: index % _COLOURS for index, name in enumerate(names)}


def _bars(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    colours: Mapping[str, int],
    *,
    unit: Any,
    limit: float | None = None,
) -> str:
    """Draw one stacked horizontal bar a row, and a line where the limit is."""
    totals = [sum(parts.values()) for _, parts in rows]
    room = _WIDTH - _LABELS - 90  # and the sum at the right
    scale = room / max([*totals, limit or 0.0, 1e-9])
    top = 22 if limit else 0
    height = top + _ROW * len(rows) + 2
    shapes = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">']
    for index, ((name, parts), total) in enumerate(zip(rows, totals, strict=True)):
        y = top + _ROW * index
        shapes.append(f'<text x="0" y="{y + 17}">{escape(name)}</text>')
        shapes.append(
            f'<rect class="track" x="{_LABELS}" y="{y + 4}" width="{room}" height="{_ROW - 8}"/>'
        )
        x = float(_LABELS)
        for part, value in parts.items():
            shapes.append(
                f'<rect x="{x:.2f}" y="{y + 4}" width="{value * scale:.2f}" height="{_ROW - 8}" '
                f'style="fill: var(--c{colours[part]})"><title>{escape(name)}: {escape(part)} '
                f"{unit(value)}</title></rect>"
            )
            x += value * scale
        over = ' class="over"' if limit is not None and total > limit else ""
        shapes.append(f'<text{over} x="{_WIDTH - 80}" y="{y + 17}">{unit(total)}</text>')
    if limit is not None:
        x = _LABELS + limit * scale
        shapes.append(f'<line class="limit" x1="{x:.2f}" x2="{x:.2f}" y1="{top}" y2="{height}"/>')
        shapes.append(
            f'<text class="quiet" x="{x:.2f}" y="14" text-anchor="end">limit {unit(limit)}</text>'
        )
    shapes.append("</svg>")
    return "\n".join(shapes)


def _legend(values: Mapping[str, float], colours: Mapping[str, int], unit: Any) -> str:
    total = sum(values.values()) or 1.0
    items = [
        f'<li><i style="background: var(--c{colours[name]})"></i>{escape(name)} {unit(value)} '
        f"({100 * value / total:.0f} %)</li>"
        for name, value in values.items()
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'
