"""The batcher: when a batch is ready, in which order, and how much may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.batcher import Batcher

#: Seconds after which a thread that should have come back counts as stuck; never waited for in a good run.
STUCK_S = 30.0
#: Seconds that nothing in a good run waits out.
FOREVER_S = 3600.0


def items(*names: Any, size: int = 1) -> list[tuple[Any, int]]:
    return [(name, size) for name in names]


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
    """Runs a function in a thread of its own; gives the future of its result."""
    threads = []

    def start(function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        thread = threading.Thread(target=lambda: future.set_result(function()), daemon=True)
        threads.append(thread)
        thread.start()
        return future

    yield start
    for thread in threads:
        thread.join(STUCK_S)
        assert not thread.is_alive()


# Batches.


def test_a_full_batch_comes_at_once_however_long_it_might_wait() -> None:
    batcher: Batcher[str] = Batcher(3, max_wait_s=FOREVER_S)
    batcher.put(items("a", "b", "c"))
    assert batcher.take(0) == ["a", "b", "c"]


def test_a_batch_that_is_not_full_comes_once_its_oldest_item_has_waited() -> None:
    batcher: Batcher[str] = Batcher(3, max_wait_s=0)
    batcher.put(items("a", "b"))
    assert batcher.take(0) == ["a", "b"]


def test_a_batch_that_is_not_full_waits_until_it_is(background) -> None:
    batcher: Batcher[str] = Batcher(3, max_wait_s=FOREVER_S)
    batcher.put(items("a"))
    taken = background(lambda: batcher.take(FOREVER_S))
    batcher.put(items("b"))
    assert not taken.done()
    batcher.put(items("c"))
    assert taken.result(STUCK_S) == ["a", "b", "c"]


def test_more_than_a_batch_is_taken_in_parts() -> None:
    batcher: Batcher[int] = Batcher(4, max_wait_s=0)
    batcher.put(items(*range(10)))
    assert [batcher.take(0) for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]


def test_without_items_the_taker_gets_an_empty_batch_after_its_timeout() -> None:
    assert Batcher(3, max_wait_s=FOREVER_S).take(0) == []


def test_a_taker_without_timeout_waits_for_the_first_item(background) -> None:
    batcher: Batcher[str] = Batcher(3, max_wait_s=0)
    taken = background(lambda: batcher.take(None))
    batcher.put(items("a"))
    assert taken.result(STUCK_S) == ["a"]


@given(st.lists(st.integers(0, 7), max_size=12), st.integers(1, 5))
def test_items_come_once_each_and_in_order(puts: list[int], max_batch: int) -> None:
    batcher: Batcher[int] = Batcher(max_batch, max_wait_s=0)
    sent: list[int] = []
    received: list[int] = []
    for count in puts:
        new = list(range(len(sent), len(sent) + count))
        batcher.put(items(*new))
        sent += new
        batch = batcher.take(0)
        assert len(batch) <= max_batch
        received += batch
    while batch := batcher.take(0):
        received += batch
    assert received == sent


def test_order_is_kept_between_threads(background) -> None:
    batcher: Batcher[int] = Batcher(7, max_wait_s=0)
    count = 2_000

    def take_all() -> list[int]:
        received: list[int] = []
        while len(received) < count and (batch := batcher.take(STUCK_S)):
            received += batch
        return received

    taken = background(take_all)
    for number in range(0, count, 5):
        batcher.put(items(*range(number, number + 5)))
    assert taken.result(STUCK_S) == list(range(count))


# Room.


def test_room_is_one_batch_of_items() -> None:
    batcher: Batcher[str] = Batcher(4, max_wait_s=0)
    assert batcher.room() == 4
    batcher.put(items("a", "b", "c"))
    assert batcher.room() == 1
    batcher.put(items("d", "e", "f"))  # a job's queries stay together, beyond the room
    assert batcher.room() == 0
    batcher.take(0)
    assert batcher.room() == 2
    batcher.take(0)
    assert batcher.room() == 4


def test_there_is_no_room_while_many_bytes_wait() -> None:
    batcher: Batcher[str] = Batcher(4, max_wait_s=0, max_bytes=100)
    batcher.put(items("a", size=99))
    assert batcher.room() == 3
    batcher.put(items("b", size=1))
    assert batcher.room() == 0
    assert batcher.take(0) == ["a", "b"]
    assert batcher.room() == 4


def test_one_item_larger_than_the_limit_is_taken_all_the_same() -> None:
    batcher: Batcher[str] = Batcher(4, max_wait_s=0, max_bytes=100)
    batcher.put(items("huge", size=10_000))
    assert batcher.room() == 0
    assert batcher.take(0) == ["huge"]
    assert batcher.room() == 4


def test_waiting_for_room_gives_up_after_its_time() -> None:
    batcher: Batcher[str] = Batcher(1, max_wait_s=0)
    assert batcher.wait_for_room(0) == 1
    batcher.put(items("a"))
    assert batcher.wait_for_room(0) == 0


def test_taking_a_batch_makes_room_for_who_waits(background) -> None:
    batcher: Batcher[str] = Batcher(2, max_wait_s=FOREVER_S)
    batcher.put(items("a", "b"))
    room = background(lambda: batcher.wait_for_room(FOREVER_S))
    assert batcher.take(0) == ["a", "b"]
    assert room.result(STUCK_S) == 2


# The end.


def test_closing_drops_what_waits() -> None:
    batcher: Batcher[str] = Batcher(2, max_wait_s=0)
    batcher.put(items("a", "b", "c"))
    assert not batcher.closed
    batcher.close()
    assert batcher.closed
    assert batcher.take(None) == []
    batcher.put(items("d"))
    assert batcher.take(None) == []


@pytest.mark.parametrize("waiting", [[], ["a"]], ids=["for an item", "for a full batch"])
def test_closing_wakes_the_taker(background, waiting: list[str]) -> None:
    batcher: Batcher[str] = Batcher(2, max_wait_s=FOREVER_S)
    batcher.put(items(*waiting))
    taken = background(lambda: batcher.take(None))
    batcher.close()
    assert taken.result(STUCK_S) == []


def test_closing_wakes_who_waits_for_room(background) -> None:
    batcher: Batcher[str] = Batcher(1, max_wait_s=FOREVER_S)
    batcher.put(items("a"))
    room = background(lambda: batcher.wait_for_room(FOREVER_S))
    batcher.close()
    room.result(STUCK_S)
