from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from vlac_queue import VlacConfig
from vlac_queue.errors import ConfigError
from vlac_queue.packages import check_engine
from vlac_queue.weights import check_weights
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.installation import VERSION_CHECKS, raise_if_broken

_GOOD = {"torch": "2.9.1", "ms-swift": "3.3.0", "numpy": "1.26.4", "vllm": "0.12.0", "transformers": "4.51.3"}


_ON_VLLM = {**_GOOD, "ms-swift": "3.12.6", "numpy": "2.2.6", "transformers": "4.57.3"}


def check_versions(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], engine: str) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    raise_if_broken(VlacConfig(engine=engine), *VERSION_CHECKS)  # type: ignore[arg-type]


@pytest.mark.parametrize("swift", ["3.3.0", "3.7.3", "3.12.6", "3.12.6.dev0"])
def test_versions_that_work_pass(swift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions(monkeypatch, {**_GOOD, "ms-swift": swift}, "pt")


@pytest.mark.parametrize(
    ("versions", "engine", "command"),
    [
        ({}, "pt", "pip install torch"),
        ({"torch": "2.9.1"}, "pt", "ms-swift==3.3.0"),
        ({**_GOOD, "ms-swift": "4.0.1"}, "pt", "ms-swift==3.3.0"),
        ({**_GOOD, "ms-swift": "3.13.0"}, "pt", "ms-swift==3.3.0"),
        ({**_GOOD, "numpy": "2.2.0"}, "pt", "pip install 'numpy<2'"),
        (_GOOD, "vllm", "ms-swift==3.12.6"),
        ({"torch": "2.9.1", "ms-swift": "3.12.6"}, "vllm", "vllm==0.12.0"),
        ({**_ON_VLLM, "vllm": "0.11.2"}, "vllm", "vllm==0.12.0"),
        ({**_ON_VLLM, "transformers": "4.51.3"}, "vllm", "transformers==4.57.3"),
    ],
)
def test_versions_that_cannot_work_are_refused_with_the_command(
    versions: dict[str, str], engine: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_versions(monkeypatch, versions, engine)
    assert command in str(refused.value)


def test_the_versions_of_vllm_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions(monkeypatch, _ON_VLLM, "vllm")


def test_arguments_of_vllm_are_refused_on_torch() -> None:
    with pytest.raises(ConfigError, match="unset VLAC_ENGINE_ARGS"):
        raise_if_broken(VlacConfig(engine_args='{"max_num_seqs": 8}'), check_engine)
    raise_if_broken(VlacConfig(), check_engine)


def weights(folder: Path, *names: str) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    for name in names:
        (folder / name).write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
    return folder


def check(folder: Path | str) -> None:
    raise_if_broken(VlacConfig(model_path=str(folder)), check_weights)


def test_a_folder_with_its_weights_passes(tmp_path: Path) -> None:
    check(weights(tmp_path, "model.safetensors"))


def test_a_hub_name_is_left_to_the_hub() -> None:
    check("InternRobotics/VLAC")


def test_missing_weights_are_told_with_what_to_do(tmp_path: Path) -> None:
    for path, reason in [("", "VLAC_MODEL_PATH"), (tmp_path / "nowhere", "no folder"), (tmp_path, "config.json")]:
        with pytest.raises(ConfigError, match=reason):
            check(path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lacks weights"):
        check(weights(tmp_path))


def test_a_half_finished_download_names_the_missing_shards(tmp_path: Path) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weights(tmp_path, shards[0])
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=shards[1]):
        check(tmp_path)


def test_loading_without_torch_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="pip install torch"):
        check_versions(monkeypatch, {}, "pt")
    with pytest.raises(ConfigError, match="pip install torch"):
        VlacCritic(VlacConfig(model_path="x")).load()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("device", "gpu"),
        ("dtype", "float64"),
        ("attention", "sdpa"),
        ("done_by", "goals"),
        ("value_recursion", "mix"),
        ("ref_num", 1),
        ("max_images", 0),
        ("engine_args", "[1]"),
        ("engine_args", "max_num_seqs=8"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=setting):
        VlacConfig(**{setting: value})  # type: ignore[arg-type]


def test_settings_come_from_the_workers_environment() -> None:
    config = VlacConfig.from_env({"VLAC_DONE_BY": "goal", "VLAC_VALUE_AHEAD": "true", "VLAC_REF_NUM": "5"})
    assert (config.done_by, config.value_ahead, config.ref_num) == ("goal", True, 5)
