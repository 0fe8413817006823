"""`vlac-queue settings`: the table of all settings."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from click.testing import CliRunner, Result

from vlac_queue import VlacConfig
from vlac_queue.cli import main


def shown(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, ["settings", *arguments], env=environ)


@pytest.mark.parametrize("columns", ["80", "132"])
def test_every_setting_is_shown_in_whole_words(columns: str) -> None:
    result = shown(COLUMNS=columns)
    assert result.exit_code == 0
    words = set(result.output.split())
    for name, meaning in VlacConfig.describe().items():
        assert f"VLAC_{name.upper()}" in words and set(meaning.split()) <= words, name
    assert max(map(len, result.output.splitlines())) <= int(columns)
    assert "\x1b" not in result.output and "set:" not in result.output


def test_json_has_every_field_with_its_default() -> None:
    rows = {row["name"]: row for row in json.loads(shown("--json", VLAC_OVERLAP="no").output)}
    for spec in fields(VlacConfig):
        row = rows[spec.name]
        assert (row["default"], row["meaning"]) == (spec.default, spec.metadata["doc"])
        assert row["set_to"] == ("no" if spec.name == "overlap" else None)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_the_environment_sets_is_shown_without_passwords(form: list[str]) -> None:
    output = shown(
        *form, VLAC_REDIS_URL="redis://me:hush@gpu7:1/0", VLAC_REDIS_PASSWORD="mum",
        VLAC_DECISION_LOG="/logs/\x1b[31m", VLAC_TIMEOUT_S="7.5",
    ).output  # fmt: skip
    assert "hush" not in output and "mum" not in output and "\x1b" not in output
    for text in ("redis://me:***@gpu7:1/0", "***", "/logs/?[31m", "7.5"):
        assert text in output


def test_a_wrong_setting_is_named_after_the_table() -> None:
    result = shown(VLAC_DONE_TRESHOLD="1")
    assert result.exit_code == 1 and "VLAC_DECISION_LOG" in result.output
    assert result.output.splitlines()[-1].endswith("did you mean 'VLAC_DONE_THRESHOLD'?")
