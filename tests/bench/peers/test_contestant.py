"""What everybody is asked."""

from collections import Counter

from bench.peers.contestant import Load, fields_of, mixed_orders
from bench.peers.order import Order
from bench.triton_patterns.patterns import INPUTS

LIKE = Order(("x",), (0,), steps=20, guidance=2.0, height=64, width=128)


def test_a_mixed_load_is_even_and_the_same_for_everybody() -> None:
    orders = mixed_orders(LIKE, (4, 20, 50), 9, seed=1)
    assert orders == mixed_orders(LIKE, (4, 20, 50), 9, seed=1)
    assert orders != mixed_orders(LIKE, (4, 20, 50), 9, seed=2)
    assert Counter(order.steps for order in orders) == {4: 3, 20: 3, 50: 3}
    assert len({order.seeds for order in orders}) == 9
    assert {(order.guidance, order.height, order.width) for order in orders} == {(2.0, 64, 128)}


def test_requests_are_complete_and_numbered_as_their_orders() -> None:
    load = Load(mixed_orders(LIKE, (4, 20), 4, seed=0), concurrency=2)
    for number, (asked, order) in enumerate(zip(load.requests, load.orders, strict=True)):
        assert asked.number == number
        assert asked.fields == fields_of(order)[0]
        assert (asked.kind.steps, asked.kind.height, asked.kind.width) == (order.steps, 64, 128)
    assert set(load.requests[0].fields) == set(INPUTS)
