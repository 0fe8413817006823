"""The command line: `vlac-queue`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from vlac_queue.console import replace_what_can_not_be_shown
from vlac_queue.signals import keep_interrupts

#: Command -> the module that holds it, imported when the command is called or listed.
_COMMANDS = {
    "acl": "vlac_queue.commands.acl.command",
    "bench": "benchmarks.command",
    "calibrate": "vlac_queue.commands.calibrate.command",
    "demo": "vlac_queue.commands.demo.command",
    "doctor": "vlac_queue.commands.doctor.command",
    "episodes": "vlac_queue.commands.episodes.command",
    "export": "vlac_queue.commands.export.command",
    "label": "vlac_queue.commands.label.command",
    "plan": "vlac_queue.commands.plan",
    "report": "dashboards.report",
    "rescore": "vlac_queue.commands.rescore.command",
    "score": "vlac_queue.commands.score.command",
    "settings": "vlac_queue.commands.settings",
    "worker": "vlac_queue.commands.worker",
    "workers": "vlac_queue.commands.workers",
}


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        keep_interrupts()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted; everything that was started has ended", err=True)
            sys.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        try:
            command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        except ModuleNotFoundError as error:
            # A stranger's package of that name is none of ours either.
            if error.name not in ("benchmarks", "benchmarks.command"):
                raise
            return _in_a_checkout
        return command


@click.command(
    short_help="Measure the queue (in a checkout).",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def _in_a_checkout(arguments: tuple[str, ...]) -> None:
    raise click.ClickException(
        "the benchmark is not part of the installed package; run it in a checkout: make bench"
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlac-queue")
def main() -> None:
    """Serve the VLAC critic to robot reinforcement learning through Redis and RQ."""
    replace_what_can_not_be_shown()


if __name__ == "__main__":
    main()
