"""`python -m benchmarks.ab OTHER_CHECKOUT`: the queue of this checkout against another's, interleaved in one run.

Each is measured by its own code in its own .venv (`make setup` there makes it): full steps of 64 episodes and
single queries as `python -m benchmarks.measuring vlac-queue` has them, and the CPU time of `import vlac_queue`.
"""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from statistics import median

import click
from rich.console import Console

from benchmarks.figures import interleaved, ratio
from benchmarks.measuring import ApartError, measure_apart
from benchmarks.processes import ROOT, machine, process
from benchmarks.report import table

_PROBE = "import time; s = time.process_time(); import vlac_queue as v; print(time.process_time() - s, v.__file__)"
#: Imports of which the quickest counts.
_IMPORTS = 5


def measure(root: Path, episodes: int, seconds: float) -> dict[str, float]:
    """Measure one checkout once; return its figures by their names in the table."""
    python = str(root / ".venv" / "bin" / "python")
    one = measure_apart("vlac-queue", "simulator", episodes, seconds, root=root, python=python)
    return {
        "queries/s": one.queries_per_s,
        "single query ms": 1000 * one.single_p50_s,
        "client CPU ms a query": 1000 * one.client_s,
        "worker CPU ms a query": 1000 * one.workers_s,
        "Redis CPU ms a query": 1000 * one.redis_s,
        "import CPU ms": 1000 * min(import_s(root, python) for _ in range(_IMPORTS)),
    }


def import_s(root: Path, python: str) -> float:
    """Return the CPU seconds of importing the package, after a check that it is this checkout's."""
    with process([python, "-c", _PROBE], {}, root=root, cwd=root, stdout=subprocess.PIPE, text=True) as started:
        took, _, file = started.communicate()[0].strip().partition(" ")
    if not Path(file).resolve().is_relative_to(root.resolve()):
        raise click.ClickException(f"{python} imports {file or 'no vlac_queue'}; run `make setup` in {root}.")
    return float(took)


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Interleaved rounds.")
# The kernel counts CPU time in steps of 10 ms.
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.5), help="Time for each round.")
@click.option("--episodes", default=64, show_default=True, type=click.IntRange(1, 512), help="That ask at once.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
def main(other: Path, rounds: int, seconds: float, episodes: int, json_file: Path | None) -> None:
    """Compares this checkout with the one in OTHER."""
    rows = {root: partial(measure, root, episodes, seconds) for root in (ROOT, other.absolute())}
    for root in rows:
        if len(rows) < 2 or not (root / ".venv").exists():
            raise click.ClickException(f"{root}: give another checkout, in which `make setup` has made .venv.")
    try:
        measured = interleaved("checkouts", rows, rounds)
    except ApartError as error:
        raise click.ClickException(str(error)) from None
    shown = []
    for name in measured[ROOT][0]:
        here, there = ([one[name] for one in each] for each in measured.values())
        shown.append([name, f"{median(here):,.4g}", f"{median(there):,.4g}", str(ratio(here, there))])
    caption = f"medians of {rounds} interleaved rounds; {machine()}"
    title = " against ".join(map(str, measured))
    Console().print(table(title, ("", "this", "other", "this/other"), shown, caption=caption))
    if json_file:
        json_file.write_text(json.dumps({str(root): each for root, each in measured.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
