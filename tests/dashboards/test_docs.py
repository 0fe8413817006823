"""docs/dashboard.md: what it lists is what there is."""

from __future__ import annotations

import inspect
import re

from dashboards import diagnosis, pages
from dashboards.live import main
from dashboards.snapshot import SCHEMA, to_json
from tests.conftest import ROOT
from tests.dashboards.states import LOOKS, TROUBLED
from tests.dashboards.test_prometheus import metrics

_TEXT = (ROOT / "docs" / "dashboard.md").read_text(encoding="utf-8")
_WORDS = set(re.findall(r"[\w-]+", _TEXT))


def test_every_kind_of_diagnosis_is_listed() -> None:
    source = inspect.getsource(diagnosis)
    kinds = set(re.findall(r'Diagnosis\(\s*(?:"\w+"(?: if .*?)?(?: else "\w+")?|severity),\s*"([a-z-]+)"', source))
    assert len(kinds) >= 18
    assert {kind for kind in kinds if f"`{kind}`" not in _TEXT} == set()


def test_every_field_of_the_document_is_listed() -> None:
    def names(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {name for each in value.values() for name in names(each)}
        return {name for each in value for name in names(each)} if isinstance(value, list) else set()

    audited = set(TROUBLED.training.audit)
    assert names(to_json(TROUBLED)) - audited - _WORDS == set()
    assert f'"schema": {SCHEMA}' in _TEXT


def test_every_metric_is_listed() -> None:
    text = metrics(LOOKS["troubled"])
    told = set(re.findall(r"# TYPE (\w+)", text))
    assert len(told) > 25
    assert told - _WORDS == set()


def test_every_option_and_key_is_told() -> None:
    options = {name for option in main.params for name in option.opts if name.startswith("--")}
    assert {name for name in options - {"--interval"} if name not in _TEXT} == set()
    keys = set(re.findall(r"(?:^|  )(\S) \w+", "  ".join(pages._KEYS.values())))
    assert keys >= set("qpswef?o")
    assert {key for key in keys if f"`{key}`" not in _TEXT} == set()
