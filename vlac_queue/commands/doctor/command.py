"""`vlac-queue doctor`."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from vlac_queue.commands.doctor.examination import Host, examine
from vlac_queue.commands.doctor.report import as_json, remedies, summary, table


@click.command(short_help="Find what is wrong, and what to do.")
@click.option("--redis-url", help="Redis to look at.  [default: VLAC_REDIS_URL, or RQ_REDIS_URL]")
@click.option("--queue", help="RQ queue to look at.  [default: VLAC_QUEUE, or vlac]")
@click.option("--critic", help="Critic that workers should run.  [default: VLAC_CRITIC, or vlac]")
@click.option(
    "--host",
    type=click.Choice(["auto", "gpu", "rollout"]),
    default="auto",
    show_default=True,
    help="gpu: look at what VLAC needs on this host, before its worker is started; rollout: do not; "
    "auto: look if the critic is vlac.",
)
@click.option("--json", "json_output", is_flag=True, help="Print JSON instead of a table.")
def doctor(redis_url: str | None, queue: str | None, critic: str | None, host: Host, json_output: bool) -> None:
    """Find what is wrong, and say what to do.

    Looks at the settings (VLAC_*), Redis, workers, packages, weights and GPU. Changes nothing. Ends with exit
    code 1 if anything is broken.
    """
    console = Console()
    with Console(stderr=True).status("looking"):
        findings = examine(redis_url, queue, critic, host)
    broken = [finding.check for finding in findings if finding.state == "broken"]
    if json_output:
        click.echo(as_json(findings))
    else:
        console.print(table(findings))
        console.print(remedies(findings), soft_wrap=True)
        console.print(summary(findings), highlight=False)
        if host == "auto" and "torch" in broken:
            console.print("Does no worker run on this host? Then --host rollout leaves VLAC's packages out.")
    sys.exit(1 if broken else 0)
