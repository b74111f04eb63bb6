"""A queue that serves its clients in turn, so that nobody's many hold up another's one."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served for each client; the clients take turns. Any thread may use it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: OrderedDict[str, deque[Item]] = OrderedDict()
        self._closed = False

    def put(self, client: str, item: Item) -> None:
        """Let an item wait."""
        with self._changed:
            self._items.setdefault(client, deque()).append(item)
            self._changed.notify()

    def get(self) -> Item | None:
        """The next item, waiting for it; None once the queue is closed, whatever is left in it."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if self._closed:
                return None
            client, items = self._items.popitem(last=False)
            item = items.popleft()
            if items:
                self._items[client] = items
            return item

    def close(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
