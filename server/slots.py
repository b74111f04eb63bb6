"""Which line of the state arrays belongs to which job."""

from __future__ import annotations


class SlotPool:
    """A free list over `capacity` lines; the lowest is given first, so that running jobs lie close together."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def available(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """A free slot.

        Raises:
            RuntimeError: all are taken; the scheduler must not let so many jobs run.
        """
        if not self._free:
            raise RuntimeError(f"all {self.capacity} slots are taken")
        return self._free.pop()

    def free(self, slot: int) -> None:
        """Give a slot back.

        Raises:
            RuntimeError: it is free already, or is none.
        """
        if slot in self._free or not 0 <= slot < self.capacity:
            raise RuntimeError(f"slot {slot} is not taken")
        self._free.append(slot)
        self._free.sort(reverse=True)
