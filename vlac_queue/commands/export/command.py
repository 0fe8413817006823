"""`vlac-queue export`: write what a decision log teaches its critic."""

from __future__ import annotations

from pathlib import Path

import click

from vlac_queue.commands.export.negatives import write_negatives
from vlac_queue.commands.export.prompts import load_prompts
from vlac_queue.commands.export.swift import Choice, write_set
from vlac_queue.console import errors_as_messages, note, writing
from vlac_queue.texts import clean, many


@click.command(short_help="Write what a critic can learn from a log.")
@click.argument("folder", metavar="LOG", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["negatives", "swift"]),
    required=True,
    help="negatives: frames found done that are not, for the critic reference. swift: a fine-tuning set for VLAC.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File (negatives) or folder.")
@click.option(
    "--most", type=click.IntRange(min=1), default=64, show_default=True, help="negatives: most frames of a task."
)
@click.option(
    "--above",
    type=click.FloatRange(0, 1),
    help="negatives: take what was scored above this and is not done.  [default: what was found done]",
)
@click.option(
    "--frames", type=click.IntRange(min=2), default=16, show_default=True, help="swift: most frames of an episode."
)
@click.option(
    "--false-dones",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="swift: how many times each false done is there.",
)
@click.option(
    "--validation",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="swift: part of the episodes that are for validation.",
)
def export(
    folder: Path,
    kind: str,
    out: Path,
    most: int,
    above: float | None,
    frames: int,
    false_dones: int,
    validation: float,
) -> None:
    """Write what a decision log teaches its critic, from the episodes whose end is known.

    The end is known from the simulator (`client.note_truth`) or a person (`vlac-queue episodes mark`).
    """

    with errors_as_messages():
        if kind == "negatives":
            with writing(out, "--out"):
                found = write_negatives(folder, out, most, above, note)
            for task, count in sorted(found.items()):
                click.echo(f"{clean(task)}: {many(count, 'negative')}")
            click.echo(f"Written: {out}; start workers with VLAC_REFERENCE_NEGATIVES={out.absolute()}")
        else:
            prompts = load_prompts()
            with writing(out, "--out"):
                counts = write_set(folder, out, prompts, Choice(frames, false_dones, validation), note)
            click.echo("\n".join(f"{name:19} {count:,}" for name, count in counts.items()))
            click.echo(f"Written: {out}; run `swift sft` in that folder, since images are named from there")
