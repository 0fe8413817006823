"""Record the simulator rollouts that ship with the package. Needs the extra: pip install 'vlac-queue[sim]'.

    MUJOCO_GL=egl python -m vlac_queue.commands.demo.recording

The physics repeats exactly. Pixels, and so the files' bytes, repeat with the same OpenGL implementation.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import NDArray

import vlac_queue.commands.demo
from vlac_queue.commands.demo.simulator import CHUNK_STEPS, ENVS, HORIZON, MetaWorldEpisode, Policy

DEFAULT_OUT = Path(vlac_queue.commands.demo.__path__[0]) / "rollouts"
FAILURE_CHUNKS = 14


@dataclass(frozen=True)
class Take:
    """One rollout to record. Seeds differ within a task, so that object positions do."""

    env: str
    kind: Literal["reference", "expert", "random", "stalled"]  # as in `Rollout.kind`
    seed: int
    chunks_after_success: int = 0  # for "reference" and "expert"
    stall_after: int = 0  # control steps, for "stalled"


def takes_of(
    env: str, *, reference: int, experts: dict[int, int], random: int, stalled: int, stall_after: int
) -> list[Take]:
    """Return the takes of one task; `experts` maps a seed to the chunks recorded after its first success."""
    return [
        Take(env, "reference", reference, chunks_after_success=1),
        *(Take(env, "expert", seed, chunks_after_success=after) for seed, after in experts.items()),
        Take(env, "random", random),
        Take(env, "stalled", stalled, stall_after=stall_after),
    ]


TAKES = [
    # The reference's drawer is near the middle of the range in which Meta-World places it.
    *takes_of("drawer-open-v3", reference=3, experts={1: 3, 2: 4, 5: 3}, random=21, stalled=31, stall_after=52),
    # Three chunks at most: later the expert pushes the door past the goal, and success goes back to False.
    *takes_of("door-open-v3", reference=0, experts={2: 3, 3: 3, 7: 3}, random=21, stalled=32, stall_after=40),
    *takes_of("door-close-v3", reference=0, experts={1: 3, 3: 4, 7: 4}, random=21, stalled=31, stall_after=30),
]


def record(take: Take) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Run one take; return its frames, (T, 256, 256, 3) uint8 RGB, and success flags, (T,) bool.

    Raises ClickException if the take turns out other than its kind promises.
    """
    policy: Policy = "expert" if take.kind == "reference" else take.kind
    chunks = HORIZON // CHUNK_STEPS if policy == "expert" else FAILURE_CHUNKS
    with MetaWorldEpisode(take.env, seed=take.seed, policy=policy, stall_after=take.stall_after) as episode:
        frames, flags = [episode.reset()], [False]  # no task starts at its goal
        while len(flags) <= chunks:
            frame, success = episode.step_chunk()
            if policy == "expert" and success and not any(flags):
                chunks = len(flags) + take.chunks_after_success
            frames.append(frame)
            flags.append(success)
    promised = 0 if take.kind in ("random", "stalled") else 1 + take.chunks_after_success
    # Success must come last and stay: a flag that comes and goes makes a poor yardstick for a critic.
    if sum(flags) != promised or not all(flags[len(flags) - promised :]):
        raise click.ClickException(f"{name_of(take)}: expected {promised} successes at the end, got {flags}")
    return np.stack(frames), np.array(flags)


def name_of(take: Take) -> str:
    """Return the rollout's name, and its file's without the ending."""
    return f"{take.env}_{take.kind}_s{take.seed}"


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz that `np.load` reads, LZMA inside.

    `np.savez_compressed` deflates, which looks back 32 KiB: less than one frame. LZMA's window spans many
    frames, so it finds the still background by itself, and does better on plain frames than on XOR deltas.
    """
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            # A member opened by name is dated 1980: the same arrays give the same bytes.
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    help="Folder for the .npz files; the package's own data by default.",
)
@click.option("--env", "envs", multiple=True, type=click.Choice(sorted(ENVS)), help="Only this; repeatable.")
def main(out: Path, envs: tuple[str, ...]) -> None:
    """Record the shipped Meta-World rollouts, three tasks done and failed, reproducibly."""
    takes = [take for take in TAKES if not envs or take.env in envs]
    out.mkdir(parents=True, exist_ok=True)
    for number, take in enumerate(takes, start=1):
        try:
            frames, success = record(take)
        except (ImportError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
        path = out / f"{name_of(take)}.npz"
        told = {"task": ENVS[take.env].task, "env": take.env, "kind": take.kind, "seed": take.seed}
        write_npz(path, frames=frames, success=success, **{name: np.array(value) for name, value in told.items()})
        first = int(success.argmax()) if success.any() else None
        click.echo(
            f"[{number}/{len(takes)}] {path.name}: {len(frames)} frames, first success {first}, "
            f"{path.stat().st_size / 1000:.0f} kB"
        )


if __name__ == "__main__":
    main()
