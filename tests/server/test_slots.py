"""server.slots: a line of the state belongs to one job at a time."""

import pytest

from server.slots import SlotPool


def test_the_lowest_free_slot_is_given_first() -> None:
    pool = SlotPool(4)
    assert [pool.allocate() for _ in range(4)] == [0, 1, 2, 3]
    for slot in (2, 0, 3):
        pool.free(slot)
    assert [pool.allocate() for _ in range(3)] == [0, 2, 3]


def test_what_is_available_is_what_was_not_given() -> None:
    pool = SlotPool(3)
    assert (pool.capacity, pool.available) == (3, 3)
    slot = pool.allocate()
    assert pool.available == 2
    pool.free(slot)
    assert (pool.capacity, pool.available) == (3, 3)


def test_one_slot_too_many_is_refused() -> None:
    pool = SlotPool(2)
    assert [pool.allocate(), pool.allocate()] == [0, 1]
    with pytest.raises(RuntimeError, match="all 2 slots"):
        pool.allocate()
    pool.free(1)
    assert pool.allocate() == 1


@pytest.mark.parametrize("slot", [-1, 1, 2, 100])
def test_only_a_taken_slot_can_be_given_back(slot: int) -> None:
    pool = SlotPool(2)
    assert pool.allocate() == 0
    with pytest.raises(RuntimeError, match=f"slot {slot} is not taken"):
        pool.free(slot)
    assert pool.available == 1


def test_a_slot_cannot_be_given_back_twice() -> None:
    pool = SlotPool(2)
    pool.free(pool.allocate())
    with pytest.raises(RuntimeError, match="slot 0 is not taken"):
        pool.free(0)
    assert [pool.allocate(), pool.allocate()] == [0, 1]
