"""`python -m benchmarks.labelling`: frames/s of `vlac-queue label`, over those of the queue itself.

Both get the same frames, interleaved in one run: `label` reads them from AV1 videos of 256x256 while it asks; the
queue gets them decoded, in steps of 16 episodes, with the next step sent before the answers to the last are waited
for. The critics: `BatchCritic`, which sleeps 50 ms a batch and 2 ms a row, as a GPU does; and `InstantCritic`,
with which decoding and the queue share the CPU and nothing else limits.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from benchmarks.figures import figure, interleaved, ratio
from benchmarks.processes import machine, wait_for_workers, worker
from benchmarks.report import table
from vlac_queue import CriticClient, DoneVerdict, Pending, VlacConfig
from vlac_queue.commands.datasets.opening import open_dataset
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.commands.label.asking import OPEN_EPISODES, ask_all
from vlac_queue.frames import Frames
from vlac_queue.server import RedisServer

_CRITICS = ("BatchCritic", "InstantCritic")


def write_videos(folder: Path, episodes: int, frames: int) -> list[Frames]:
    """Write recorded runs, forth and back until they are long enough, as AV1 with a table; return their pixels as
    they are decoded."""
    import av

    os.environ.setdefault("SVT_LOG", "1")
    rollouts = load_rollouts()
    for number in range(episodes):
        run = rollouts[number % len(rollouts)].frames
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libsvtav1", rate=10, options={"crf": "30", "g": "2", "preset": "12"})
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width, stream.pix_fmt = *run.shape[1:3], "yuv420p"
            for place in range(frames):
                turn = place % (2 * len(run))
                frame = run[min(turn, 2 * len(run) - 1 - turn)]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    rows = [f"{number}.mp4,open the drawer" for number in range(episodes)]
    (folder / "episodes.csv").write_text("\n".join(["file,task", *rows]))
    return [list(each.clip(1).frames) for each in open_dataset(folder).recordings()]  # type: ignore[misc]


def label_rate(client: CriticClient, folder: Path) -> float:
    """Return frames/s of a dataset labelled from its videos."""
    began = time.perf_counter()
    answers = list(ask_all(client, open_dataset(folder).recordings(), lambda recording: None, 1))
    took = time.perf_counter() - began
    assert not [each.error for each in answers if each.error]
    return sum(each.length for each in answers) / took


def queue_rate(client: CriticClient, runs: Sequence[Frames]) -> float:
    """Return frames/s of the same frames from memory: the same queries, asked as a rollout does."""
    began = time.perf_counter()
    for start in range(0, len(runs), OPEN_EPISODES):
        part = runs[start : start + OPEN_EPISODES]
        episodes = client.episodes(["open the drawer"] * len(part))
        before: list[Pending[DoneVerdict]] = []
        for step in range(len(part[0])):
            asked = client.observe_many([(each, run[step]) for each, run in zip(episodes, part, strict=True)])
            client.wait(before)
            before = asked
        client.wait([*before, *client.ask_value_many(episodes)])
        client.close_many(episodes)
    return sum(map(len, runs)) / (time.perf_counter() - began)


@click.command()
@click.option("--episodes", default=32, show_default=True, help="Videos.")
@click.option("--frames", default=60, show_default=True, help="Frames of each.")
@click.option("--rounds", default=3, show_default=True)
def main(episodes: int, frames: int, rounds: int) -> None:
    """Measure `vlac-queue label` against the queue itself."""
    rows = []
    with tempfile.TemporaryDirectory() as made, RedisServer() as server:
        folder = Path(made)
        runs = write_videos(folder, episodes, frames)
        for critic in _CRITICS:
            with (
                worker(server.url, VLAC_CRITIC=f"benchmarks.critics:{critic}"),
                CriticClient(VlacConfig(redis_url=server.url)) as client,
            ):
                wait_for_workers(client)
                measures = {
                    "label": partial(label_rate, client, folder),
                    "queue": partial(queue_rate, client, runs),
                }
                found = interleaved(critic, measures, rounds)
                part = ratio(found["label"], found["queue"])
                rows.append([critic, *(f"{figure(found[name]).median:.0f}" for name in measures), str(part)])
    headers = ["critic", "label, frames/s", "queue, frames/s", "label / queue"]
    Console().print(table(f"{episodes} videos of {frames} frames, {machine()}", headers, rows))


if __name__ == "__main__":
    main()
