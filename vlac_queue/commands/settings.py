"""`vlac-queue settings`: list all settings, with their variables, defaults and meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields

import click
from rich.console import Console
from rich.text import Text

from vlac_queue.config import ENV_PREFIX, VlacConfig, redact_url
from vlac_queue.console import errors_as_messages, plain_table
from vlac_queue.credentials import PASSWORD
from vlac_queue.credentials import VARIABLES as CREDENTIALS
from vlac_queue.texts import clean

_URL = ENV_PREFIX + "REDIS_URL"


@dataclass(frozen=True)
class Setting:
    """A setting as this command shows it."""

    name: str | None  # of the field of `VlacConfig`; None for a user or password, which only the environment gives
    variable: str
    default: str | int | float | bool | None  # on this machine; None where there is none
    set_to: str | None  # what the environment holds, passwords hidden
    meaning: str  # with its unit or choices


def all_settings(environ: Mapping[str, str] = os.environ) -> list[Setting]:
    """Return all settings in the order of `VlacConfig`, then Redis' user and password."""

    def shown(variable: str) -> str | None:
        text = environ.get(variable)
        if text is None or variable == PASSWORD:
            return text and "***"
        return clean(redact_url(text) if variable == _URL else text)

    settings = []
    for spec in fields(VlacConfig):
        variable = ENV_PREFIX + spec.name.upper()
        default = None if spec.default is MISSING else spec.default
        settings.append(Setting(spec.name, variable, default, shown(variable), spec.metadata["doc"]))
    return settings + [Setting(None, name, None, shown(name), doc) for name, doc in CREDENTIALS.items()]


@click.command(short_help="Show every setting, and what is set.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def settings(as_json: bool) -> None:
    """Show every setting: its environment variable, its default, what is set, and what it means.

    In Python a setting is a field of VlacConfig, in hydra a key of the node `vlac`: the variable's name without
    VLAC_, in small letters. Exit code 1 if the environment holds a setting that is wrong.
    """
    found = all_settings()
    if as_json:
        click.echo(json.dumps([asdict(setting) for setting in found], indent=2))
    else:
        _show(found)
    with errors_as_messages():
        VlacConfig.from_env()


def _show(found: list[Setting]) -> None:
    table = plain_table()
    # One above the other: so that at 80 columns the longest word of the meanings, a URL, stays whole.
    table.add_column("variable\n  default", overflow="fold", min_width=26, max_width=40)
    table.add_column("meaning", overflow="fold", ratio=1)
    for setting in found:
        default = setting.default
        if isinstance(default, bool):
            default = str(default).lower()
        elif isinstance(default, float):
            default = f"{default:g}"
        lines = [setting.variable, *([] if default is None else [f"  {default if default != '' else '(empty)'}"])]
        lines += [] if setting.set_to is None else [f"  set: {setting.set_to}"]
        table.add_row(Text("\n".join(lines), "" if setting.set_to is None else "bold"), Text(setting.meaning))
    Console(highlight=False).print(table)
