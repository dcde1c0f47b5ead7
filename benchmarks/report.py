"""The tables: times as ratios to one contender, the bars beside them."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"


class Table:
    """Rows of times per contender; the first contender is what the ratios are relative to."""

    def __init__(self, title, contenders, note=""):
        self.title, self.contenders, self.note = title, contenders, note
        self.rows, self.bars = [], []

    def add(self, label, times):
        self.rows.append((label, times))

    def bar(self, text, value, limit, *, at_least=False):
        met = value >= limit if at_least else value <= limit
        sign = ">=" if at_least else "<="
        state = "met" if met else "NOT met"
        shown = f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
        bound = f"{limit:g}" if limit < 1000 else f"{limit:,}"
        self.bars.append(f"{text}: {shown} (bar {sign} {bound}): **{state}**")

    def say(self, text):
        """Add what has no bar."""
        self.bars.append(text)

    def lines(self):
        yield f"### {self.title}"
        yield ""
        if self.note:
            yield self.note
            yield ""
        if self.rows:
            yield "| µs | " + " | ".join(self.contenders) + " |"
            yield "|---" * (len(self.contenders) + 1) + "|"
            for label, times in self.rows:
                cells = [self._cell(times, name) for name in self.contenders]
                yield f"| {label} | " + " | ".join(cells) + " |"
            yield ""
        for text in self.bars:
            yield f"- {text}"
        if self.bars:
            yield ""

    def _cell(self, times, name):
        if name not in times:
            return "not run" if len(times) > 1 else "-"
        if times[name] is None:
            return "-"
        base = times.get(self.contenders[0])
        shown = f"{times[name]:.3g}" if times[name] < 1000 else f"{times[name]:.0f}"
        return shown if not base else f"{shown} ({times[name] / base:.2f}x)"


def machine():
    """Give what the figures were measured on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    libraries = []
    for name in ("lmdb", "cbor2", "xxhash", "fusepy", "diskcache", "redis"):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {cpu[1] if cpu else '?'}, "
        f"Linux {platform.release()}, Python {platform.python_version()}; {', '.join(libraries)}"
    )


def write(parts):
    """Put each part's lines into the page, between its markers."""
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in parts.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{chr(10).join(lines)}\n{end}{after}"
    PAGE.write_text(page, encoding="utf-8")
