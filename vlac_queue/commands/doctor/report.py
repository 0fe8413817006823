"""Show findings to people, as a table, remedies and a line, or as JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from vlac_queue.console import plain_table
from vlac_queue.finding import Finding, State
from vlac_queue.texts import many

_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "broken": "bold red", "skipped": "dim"}


def table(findings: Sequence[Finding]) -> Table:
    """Return one row for each finding; what to do about it is told by `remedies`."""
    made = plain_table()
    made.add_column("check", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("found", ratio=1, overflow="fold")
    for finding in _grouped(findings):
        state = Text(finding.state, style=_STYLES[finding.state])
        found = Text(finding.found, style="dim" if finding.state == "skipped" else "")
        made.add_row(finding.check, state, found)
    return made


def remedies(findings: Sequence[Finding]) -> Text:
    """Return what to do, by check. Print it with soft_wrap: a command broken over two lines can't be pasted."""
    said = Text()
    for finding in _grouped(findings):
        if finding.remedy:
            said.append(f"\n{finding.check}: what to do\n", "bold")
            said.append("".join(f"  {line}\n" for line in finding.remedy.splitlines()))
    return said


def _grouped(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, with checks that were skipped for one reason made one row."""
    rows: list[Finding] = []
    for (state, reason), group in itertools.groupby(findings, key=lambda finding: (finding.state, finding.found)):
        alike = list(group)
        if state == "skipped" and len(alike) > 1:
            names = ", ".join(finding.check for finding in alike)
            alike = [Finding("skipped", f"{reason}: {names}", check=f"{len(alike)} checks")]
        rows += alike
    return rows


def summary(findings: Sequence[Finding]) -> str:
    """Return a line such as "1 broken (eviction), 2 warnings, 0 skipped"."""
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    names = ", ".join(finding.check for finding in findings if finding.state == "broken")
    rest = f"{many(counts['warning'], 'warning')}, {counts['skipped']} skipped."
    return f"{counts['broken']} broken ({names}), {rest}" if names else f"Nothing broken, {rest}"


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings, and whether any is broken."""
    broken = any(finding.state == "broken" for finding in findings)
    return json.dumps({"broken": broken, "findings": [asdict(finding) for finding in findings]}, indent=2)
