"""Suites of tasks: FAKE_LIBERO_PLANS holds a JSON list of a list of plans, a task each and a trial each."""

import json
import os


class Task:
    def __init__(self, task_id: int) -> None:
        self.language = f"do task {task_id}"
        self.problem_folder, self.bddl_file = "tasks", f"{task_id}.bddl"


class Benchmark:
    def __init__(self) -> None:
        self._plans = json.loads(os.environ["FAKE_LIBERO_PLANS"])

    def get_num_tasks(self) -> int:
        return len(self._plans)

    def get_task(self, task_id: int) -> Task:
        return Task(task_id)

    def get_task_init_states(self, task_id: int) -> list[str]:
        return self._plans[task_id]


def get_benchmark(name: str) -> type[Benchmark]:
    return Benchmark
