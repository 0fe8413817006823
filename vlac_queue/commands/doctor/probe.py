"""Code that runs in an interpreter of its own: what it imports, breaks or takes is gone with it."""

from __future__ import annotations

import os
import subprocess
import sys

from vlac_queue.texts import clean

#: Seconds that it may take; from a cold disk torch is slow to import.
_LIMIT_S = 90.0


def probe(code: str, *arguments: str, **environ: str) -> str:
    """Return what the code prints.

    Raises:
        RuntimeError: it fails, with the last line that it printed as the message; or it takes too long.
    """
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(
            command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it is not imported within {_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise RuntimeError(clean((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]))
    return done.stdout
