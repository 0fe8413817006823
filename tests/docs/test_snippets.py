"""What README and the other pages tell a newcomer to paste: it works as it stands."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pytest

from tests.conftest import until
from tests.docs.pages import PAGES, ROOT, commands, snippets
from vlac_queue import CriticClient, DoneVerdict, NoWorkers, ValueVerdict, VlacConfig, errors
from vlac_queue.cli import main
from vlac_queue.commands.doctor.gpu_checks import judge_gpu
from vlac_queue.server import RedisServer

_DEFAULT_URL = VlacConfig.redis_url


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis, and a worker that README's own line started."""
    folder = tmp_path_factory.mktemp("worker")
    line = next(line for line in commands_of_readme() if "rq worker vlac --with-scheduler" in line)
    assert "VLAC_CRITIC=reference" in line
    with RedisServer() as server, open(folder / "log", "wb") as log:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environ = {**os.environ, "RQ_REDIS_URL": server.url, "PATH": path}
        worker = subprocess.Popen(["sh", "-c", line], env=environ, cwd=folder, stdout=log, stderr=log)
        try:
            with CriticClient(VlacConfig(redis_url=server.url)) as client:
                until(lambda: listens(client) or worker.poll() is not None)
            assert worker.poll() is None, (folder / "log").read_text()
            yield server.url
        finally:
            for each in (*psutil.Process(worker.pid).children(recursive=True), worker):
                each.kill()
            worker.wait()


def commands_of_readme() -> list[str]:
    return "\n".join(snippet.text for snippet in snippets(ROOT / "README.md", "bash")).splitlines()


def listens(client: CriticClient) -> bool:
    try:
        return bool(client.ping())
    except NoWorkers:
        return False


def run(page: Path, url: str) -> dict[str, Any]:
    """Runs the page's Python snippets one after another, as pasted into one session; the names that they made."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page, "python"):
        # Beside its lines of the page: a traceback names them.
        text = "\n" * (snippet.line - 1) + snippet.text.replace(_DEFAULT_URL, url)
        code = compile(text, str(page), "exec")
        if snippet.runs:
            exec(code, names)  # noqa: S102
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name)
def test_a_pages_snippets_run_as_pasted(
    page: Path, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLAC_REDIS_URL", url)
    for made in run(page, url).values():
        if isinstance(made, CriticClient):
            made.close()


def test_readmes_snippets_give_what_they_show(url: str) -> None:
    names = run(ROOT / "README.md", url)
    assert names["verdict"].done and names["value"].values[-1] == 100.0
    outcomes = names["outcomes"]
    assert any(outcome.done and outcome.reward == 1.0 for outcome in outcomes)
    assert any(not outcome.done and outcome.reward < 1.0 for outcome in outcomes)
    names["client"].close()


def test_readmes_recording_scores_as_shown(url: str, tmp_path: Path) -> None:
    page = ROOT / "README.md"
    (command,) = (snippet.text for snippet in snippets(page, "bash") if "vlac-queue score" in snippet.text)
    (shown,) = (snippet.text for snippet in snippets(page, "") if "negative rate" in snippet.text)
    lines = "\n".join(line for line in command.splitlines() if not line.startswith("pip "))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "VLAC_REDIS_URL": url, "PATH": path}
    ran = subprocess.run(["sh", "-c", lines], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == shown, ran.stderr


def test_the_guides_critic_serves_a_queue(client: CriticClient, server: RedisServer, tmp_path: Path) -> None:
    """The class of docs/critics.md, in a file of its own, by the page's command."""
    page = ROOT / "docs" / "critics.md"
    (tmp_path / "my_critics.py").write_text(snippets(page, "python")[0].text)
    (command,) = (snippet.text for snippet in snippets(page, "bash") if "my_critics" in snippet.text)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "VLAC_REDIS_URL": server.url, "PATH": path}
    with open(tmp_path / "log", "wb") as log:
        worker = subprocess.Popen(["sh", "-c", command], env=environ, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until(lambda: listens(client) or worker.poll() is not None)
        dark, bright = np.zeros((2, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
        with client.episode("switch on the lamp") as episode:
            first = episode.observe(dark)
            assert first.result() == DoneVerdict(False, 0.0, 1), (tmp_path / "log").read_text()
            assert episode.observe(bright).result() == DoneVerdict(True, 1.0, 2)
            assert episode.ask_value().result() == ValueVerdict((0.0, 0.0, 100.0), (0.0, 100.0))
            assert first.critic.name == "my_critics:Brightness"
        client.sleep_workers()
    finally:
        for each in (*psutil.Process(worker.pid).children(recursive=True), worker):
            each.kill()
        worker.wait()


def test_the_guide_to_python_has_every_error_and_trains_on_no_step_after_the_end(url: str) -> None:
    page = ROOT / "docs" / "python.md"
    told = re.findall(r"^\| `(\w+)` \|.*", page.read_text(), re.MULTILINE)
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert kinds - set(told) == {"VlacQueueError"}
    names = run(page, url)
    for outcome, mask, rewards in zip(names["outcomes"], names["mask"], names["rewards"], strict=True):
        assert mask.sum() == outcome.finish_step and rewards[mask].sum() == np.float32(outcome.reward)
    assert not names["mask"].all()
    names["client"].close()


def test_the_citation_is_of_this_version() -> None:
    citation, project = ((ROOT / name).read_text() for name in ("CITATION.cff", "pyproject.toml"))
    for field in ("version", "license"):
        (cited,) = re.findall(rf"^{field}: (\S+)$", citation, re.MULTILINE)
        assert f'{field} = "{cited}"' in project.splitlines()


# Commands: that they name what exists.


@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")
def test_make_help_tells_every_target() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} == make_targets()
    assert max(map(len, shown.splitlines())) <= 80


def make_targets() -> set[str]:
    files = [ROOT / "Makefile", *(path for path in ROOT.rglob("*.mk") if ".venv" not in path.parts[-2])]
    rule = re.compile(r"^([\w-]+)(?: [^\n:=]*)?:(?!=)", re.MULTILINE)
    return {target for file in files for target in rule.findall(file.read_text())}


def options_of(command: click.Command, words: list[str]) -> tuple[set[str], list[str]]:
    """The options of a command, or of the subcommand that `words` name, and the words that are left."""
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        names = words[0].split("|")  # such as sleep|wake
        chosen = [command.get_command(click.Context(command), name) for name in names]
        assert None not in chosen, f"no such command: {words[0]}"
        return options_of(chosen[0], words[1:])  # type: ignore[arg-type]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return known | {"--help", "-h", "--version"}, words


def command_of(words: list[str]) -> tuple[click.Command | None, list[str]]:
    if words[0] == "vlac-queue":
        if words[1:2] == ["bench"]:
            return importlib.import_module("benchmarks.command").bench, words[2:]
        return main, words[1:]
    module = words[2]
    assert importlib.util.find_spec(module), f"no such module: {module}"
    if module == "dashboards.live":
        return importlib.import_module(module).main, words[3:]
    return None, []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_pages_commands_name_what_exists(page: Path) -> None:
    targets = make_targets()
    for line in commands(page):
        if not re.match(r"(make|vlac-queue|pip|python -m) ", line):
            continue
        words = shlex.split(line)
        if words[0] == "make":
            assert {word for word in words[1:] if re.fullmatch(r"[a-z][\w-]*", word)} <= targets, line
        elif words[0] == "pip":  # the package is not on an index yet
            assert not any(re.match("vlac-queue", word) for word in words), line
        else:
            command, words = command_of(words)
            if command is None:
                continue
            known, rest = options_of(command, words)
            ours = rest[: rest.index("--")] if "--" in rest else rest
            used = {word.partition("=")[0] for word in ours if re.match(r"--?[a-z]", word)}
            assert used <= known, f"{line}: no such option: {used - known}"


def test_the_gpu_that_docs_promise_to_be_enough_is() -> None:
    """With the part of its memory that docs/vlac.md says."""
    page = (ROOT / "docs" / "vlac.md").read_text()
    promised = re.search(r"an NVIDIA GPU with (\d+) GB", page)
    exported = re.search(r"export VLAC_GPU_MEMORY_FRACTION=(\S+) .* (\d+) GB", page)
    assert promised and exported and promised[1] == exported[2]
    header, _, row = page[page.index("| GPU |") :].splitlines()[:3]
    fractions = dict(zip(re.findall(r"(\d+) GB", header), re.findall(r"\d\.\d+", row), strict=True))
    assert fractions[promised[1]] == exported[1] and fractions["80"] == str(VlacConfig.gpu_memory_fraction)
    for gb, fraction in fractions.items():
        found = judge_gpu(VlacConfig(gpu_memory_fraction=float(fraction)), "GPU", int(gb) << 30, int(gb) << 30)
        assert found.state == "ok", (gb, found)
