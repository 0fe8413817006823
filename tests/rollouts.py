"""The shipped rollouts, read once for all tests of a process."""

from vlac_queue.commands.demo.rollouts import load_rollouts

ROLLOUTS = load_rollouts()
