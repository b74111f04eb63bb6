"""server.urgency on a clock that is set by hand: how clients, priorities and timeouts share one line."""

from __future__ import annotations

import random

import pytest

from server.urgency import CLIENTS_KEPT, PRIORITY_SECONDS, STRETCH, Urgency
from tests.fakes import make_request

# Of the whole server, and alone.
SECONDS, ALONE = 0.5, 1.2


class Line:
    """An `Urgency` and its clock."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.urgency = Urgency(lambda: self.now)

    def due(self, client: str = "", seconds: float = SECONDS, alone: float = ALONE, **fields: object) -> float:
        """From now on."""
        return self.urgency.due(make_request(client_id=client, **fields), seconds, alone) - self.now


def test_a_job_of_its_own_is_due_after_so_many_times_its_time_alone() -> None:
    assert Line().due() == pytest.approx(STRETCH * ALONE)


def test_the_requests_of_one_client_line_up() -> None:
    line = Line()
    dues = [line.due("a") for _ in range(1000)]
    assert dues == pytest.approx([STRETCH * ALONE + i * SECONDS for i in range(1000)])


def test_another_clients_single_request_passes_nearly_all_of_a_thousand() -> None:
    line = Line()
    dues = [line.due("a") for _ in range(1000)]
    line.now += 10
    single = line.due("b") + 10
    assert sum(due < single for due in dues) <= 1 + 10 / SECONDS


def test_two_clients_get_the_same_share_however_much_each_sends() -> None:
    """Alternating though one sends ten times as much."""
    line = Line()
    dues = sorted([(line.due("a"), "a") for _ in range(200)] + [(line.due("b"), "b") for _ in range(20)])
    assert [client for _, client in dues[:40]].count("b") == 20


def test_long_jobs_use_up_their_clients_share_sooner() -> None:
    line = Line()
    line.due("a", seconds=10 * SECONDS)
    line.due("b", seconds=SECONDS)
    assert line.due("a") - line.due("b") == pytest.approx(9 * SECONDS)


def test_a_client_that_found_the_server_idle_owes_nothing_for_it() -> None:
    line = Line()
    for _ in range(50):
        line.due("a")
        line.now += SECONDS
    assert line.due("a") == pytest.approx(line.due("b"))


def test_credit_is_not_saved_up() -> None:
    line = Line()
    line.due("a")
    line.now += 1000
    assert [line.due("a"), line.due("a")] == pytest.approx([STRETCH * ALONE, STRETCH * ALONE + SECONDS])


def test_requests_without_a_client_are_one_clients() -> None:
    line = Line()
    assert [line.due(), line.due()] == pytest.approx([STRETCH * ALONE, STRETCH * ALONE + SECONDS])
    assert line.due("a") == pytest.approx(STRETCH * ALONE)


@pytest.mark.parametrize("priority", [-10, -1, 1, 10])
def test_a_step_of_priority_is_worth_so_much_earlier_arrival(priority: int) -> None:
    assert Line().due(priority=priority) == pytest.approx(STRETCH * ALONE - priority * PRIORITY_SECONDS)


def test_a_low_priority_is_older_than_any_newcomer_in_the_end() -> None:
    line = Line()
    old = line.due("a", priority=-10) + line.now
    line.now += 20 * PRIORITY_SECONDS + 1
    assert line.due("b", priority=10) + line.now > old


@pytest.mark.parametrize(("timeout_ms", "due"), [(1000, 1.0), (3000, 3.0), (60_000, STRETCH * ALONE)])
def test_a_job_is_due_by_its_timeout_if_that_is_earlier(timeout_ms: int, due: float) -> None:
    assert Line().due(timeout_ms=timeout_ms) == pytest.approx(due)


def test_a_timeout_does_not_pass_a_clients_line() -> None:
    line = Line()
    for _ in range(100):
        line.due("a")
    assert line.due("a", timeout_ms=1) > 100 * SECONDS


@pytest.mark.parametrize("images", [1, 2, 16])
def test_when_the_last_image_would_be_due_is_what_it_is_then_due(images: int) -> None:
    line = Line()
    for _ in range(3):
        line.due("a")
    request = make_request(client_id="a", num_images=images, priority=2, timeout_ms=2000)
    foreseen = [line.urgency.last_due(request, SECONDS, ALONE) for _ in range(3)]
    dues = [line.urgency.due(request, SECONDS, ALONE) for _ in range(images)]
    assert foreseen == pytest.approx([dues[-1]] * 3)


def test_what_is_refunded_is_not_owed_and_is_no_credit() -> None:
    line = Line()
    for _ in range(10):
        line.due("a")
    line.urgency.refund("a", 4 * SECONDS)
    assert line.due("a") == pytest.approx(STRETCH * ALONE + 6 * SECONDS)
    line.urgency.refund("a", 100.0)
    line.urgency.refund("nobody", 100.0)
    assert [line.due("a"), line.due("nobody")] == pytest.approx([STRETCH * ALONE] * 2)


def test_clients_are_forgotten_but_not_while_they_owe() -> None:
    line, chance = Line(), random.Random(1)
    for number in range(20 * CLIENTS_KEPT):
        line.due(f"client {number}", seconds=chance.uniform(0, 2))
        line.now += 0.01
        # Two seconds' clients may still owe.
        assert len(line.urgency._busy_until) <= CLIENTS_KEPT + 2 / 0.01 + 1
    line.due("a", seconds=100.0)
    for number in range(2 * CLIENTS_KEPT):
        line.due(f"other {number}", seconds=0.001)
        line.now += 0.01
    assert line.due("a") > STRETCH * ALONE + 50
