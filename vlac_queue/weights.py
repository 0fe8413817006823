"""Checks of the folder of VLAC's weights: whether all is there and complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vlac_queue.config import VlacConfig
from vlac_queue.finding import Finding
from vlac_queue.texts import clean, many, size


def check_weights(config: VlacConfig) -> Finding:
    path = config.model_path
    download = "huggingface-cli download InternRobotics/VLAC --local-dir"
    if not path:
        remedy = f"{download} VLAC-weights\nexport VLAC_MODEL_PATH=$PWD/VLAC-weights"
        return Finding("broken", "VLAC_MODEL_PATH is not set", remedy)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.count("/") == 1 and not path.startswith((".", "~", os.sep)):
            return Finding("skipped", f"{path} is a name on a hub: ms-swift downloads it at the worker's start")
        remedy = "name the folder with VLAC's weights:\nexport VLAC_MODEL_PATH=FOLDER"
        return Finding("broken", f"{path} is no folder", remedy)
    again = f"{download} {path}"
    try:
        missing, damaged = _missing_files(folder), [file.name for file in _weight_files(folder) if _is_cut(file)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return Finding("broken", f"{path}: its JSON files can't be read ({clean(error)})", again)
    if missing:
        return Finding("broken", f"{path} lacks {', '.join(missing)}", again)
    if damaged:
        return Finding("broken", f"{path}: incomplete: {', '.join(damaged)}", again)
    files = _weight_files(folder)
    return Finding("ok", f"{path}: {many(len(files), 'file')} of weights, {size(weight_bytes(folder))}, tokenizer")


def _missing_files(folder: Path) -> list[str]:
    """Return the files that the folder of a checkpoint should have and has not."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    needed = set()
    for index in folder.glob("*.index.json"):
        needed |= set(json.loads(index.read_text())["weight_map"].values())
    # The model's own code comes with its weights; a name with -- is code of another repository.
    auto_map = json.loads((folder / "config.json").read_text()).get("auto_map", {})
    needed |= {
        f"{name.split('.')[0]}.py" for name in auto_map.values() if isinstance(name, str) and "--" not in name
    }
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if not missing and not _weight_files(folder):
        missing.append("weights (*.safetensors or *.bin)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("a tokenizer (tokenizer.model or tokenizer.json)")
    if not (folder / "tokenizer_config.json").is_file():
        missing.append("tokenizer_config.json")
    return missing


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _weight_files(folder))


def _is_cut(path: Path) -> bool:
    """Return whether a file of weights is empty, a Git LFS pointer, or shorter than its own header says."""
    with path.open("rb") as file:
        begin = file.read(8)
        if len(begin) < 8 or begin == b"version ":
            return True
        if path.suffix != ".safetensors":
            return False
        # Its format: the header's length, the header as JSON, the data; offsets count from the data's begin.
        length = int.from_bytes(begin, "little")
        size = path.stat().st_size
        if 8 + length > size:
            return True
        tensors = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0) > size
