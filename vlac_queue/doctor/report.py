"""The findings for people, as a table and a line, and as JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from vlac_queue.doctor.finding import Finding, State
from vlac_queue.texts import many

#: Columns from which on the table has one for what to do; below, it stands under what was found.
_WIDE = 120
_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "broken": "bold red", "skipped": "dim"}


def table(findings: Sequence[Finding], width: int) -> Table:
    """One row for each finding, for a terminal of `width` columns."""
    wide = width >= _WIDE
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=wide)
    made.add_column("check", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("found" if wide else "found, and what to do", ratio=1, overflow="fold")
    if wide:
        made.add_column("what to do", ratio=1, overflow="fold")
    for finding in _grouped(findings):
        state = Text(finding.state, style=_STYLES[finding.state])
        found = Text(finding.found, style="dim" if finding.state == "skipped" else "")
        remedy = Text(finding.remedy, style="bold")
        if wide:
            made.add_row(finding.check, state, found, remedy)
            continue
        if finding.remedy:
            found = Text("\n").join([found, Text("-> ", style="bold") + remedy])
        made.add_row(finding.check, state, found)
    return made


def _grouped(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with checks that were skipped for one reason made one row."""
    rows: list[Finding] = []
    for (state, reason), group in itertools.groupby(findings, key=lambda each: (each.state, each.found)):
        alike = list(group)
        if state != "skipped" or len(alike) == 1:
            rows += alike
            continue
        names = ", ".join(each.check for each in alike)
        rows.append(Finding("skipped", f"{reason}: {names}", check=f"{len(alike)} checks"))
    return rows


def summary(findings: Sequence[Finding]) -> str:
    """Such as "1 broken (eviction), 2 warnings, 0 skipped"."""
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    names = ", ".join(finding.check for finding in findings if finding.state == "broken")
    rest = f"{many(counts['warning'], 'warning')}, {counts['skipped']} skipped."
    return f"{counts['broken']} broken ({names}), {rest}" if names else f"Nothing broken, {rest}"


def as_json(findings: Sequence[Finding]) -> str:
    """The findings, and whether any is broken."""
    rows = [asdict(finding) for finding in findings]
    return json.dumps({"broken": any_broken(findings), "findings": rows}, indent=2)


def any_broken(findings: Sequence[Finding]) -> bool:
    return any(finding.state == "broken" for finding in findings)
