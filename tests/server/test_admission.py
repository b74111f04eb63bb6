"""server.admission: room in the queue, fair shares of it, deadlines, and predictions held against what came of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import CAUTION, RETRY_SECONDS, SHARE_OF_ROOM, Admission, Cost
from server.config import ServerConfig
from server.errors import Overloaded
from server.job import Job, Plot
from server.request import Request
from server.step_curve import StepCurve
from tests.fakes import make_request
from tests.virtual_server import NO_LIMIT, Arrival, VirtualServer, device, poisson

CAP = 14
CURVE = StepCurve([(rows, device(rows)) for rows in range(1, 17)])


def opened(queue_limit: int = 40, queue_bytes: int = NO_LIMIT, curve: StepCurve = CURVE) -> Admission:
    config = ServerConfig(Path(), queue_limit=queue_limit, queue_bytes=queue_bytes)
    return Admission(config, lambda plot: curve, lambda: 1000.0)


def plot_of(request: Request) -> Plot:
    return Plot(request.model, request.height, request.width)


def asked(admission: Admission, calls: int = 20, **fields: Any) -> tuple[Request, Cost]:
    request = make_request(**fields)
    return request, admission.cost(request, [(plot_of(request), calls, 2 if request.guided else 1)])


def state_of(admission: Admission) -> object:
    """All that is counted."""
    return (
        admission.backlog.total(),
        admission._images,
        admission._memory,
        dict(admission._clients),
        dict(admission._urgency._busy_until),
    )


def test_cost_is_reckoned_from_the_curve() -> None:
    request = make_request(prompt="abc", negative_prompt="de")
    cost = opened().cost(request, [(plot_of(request), 20, 2)])
    assert (cost.calls, cost.places) == (20, CAP / 2)
    assert cost.alone == pytest.approx(20 * device(2))
    assert cost.full == pytest.approx(20 * device(CAP))
    assert cost.seconds == pytest.approx(20 * device(CAP) * 2 / CAP)
    assert cost.memory == 128 * 128 * 3.25 + 5


def test_an_image_with_more_rows_than_the_cap_has_its_calls_for_itself() -> None:
    request = make_request()
    cost = opened(curve=StepCurve([(2, 1.0), (16, 8.0)])).cost(request, [(plot_of(request), 10, 6)])
    assert cost.places == 1
    assert cost.seconds == cost.alone == cost.full == pytest.approx(30)


def test_without_a_curve_nothing_is_predicted_and_all_deadlines_are_let_in() -> None:
    admission = opened(queue_limit=NO_LIMIT, curve=StepCurve())
    for number in range(50):
        admission.enter(*asked(admission, timeout_ms=1, client_id=str(number)))
    assert admission.backlog.total() == (0.0, 50)


def test_images_beyond_the_queues_limit_are_refused() -> None:
    admission = opened(queue_limit=10)
    admission.enter(*asked(admission, num_images=4, client_id="a"))
    admission.enter(*asked(admission, num_images=5, client_id="b"))
    with pytest.raises(Overloaded, match="9 images are waiting or running, this server takes 10") as refusal:
        admission.enter(*asked(admission, num_images=2, client_id="c"))
    assert refusal.value.retry_after_ms == 1000 * RETRY_SECONDS
    admission.enter(*asked(admission, client_id="c"))


def test_memory_beyond_the_bound_is_refused() -> None:
    """An image of 192 x 192 pixels holds 2.25 times what one of 128 x 128 holds."""
    admission = opened(queue_bytes=1 << 20)
    small, large = (side * side * 3.25 + len("a red circle") for side in (128, 192))
    for number in range(18):
        admission.enter(*asked(admission, client_id=str(number)))
    assert 18 * small + large > 1 << 20 > 19 * small
    with pytest.raises(Overloaded, match="open requests hold 0 MiB, this server allows 1"):
        admission.enter(*asked(admission, height=192, width=192))
    admission.enter(*asked(admission))
    assert admission._memory == 19 * small


def test_one_client_leaves_room_for_others() -> None:
    admission = opened(queue_limit=90)
    for _ in range(80):
        admission.enter(*asked(admission, client_id="greedy"))
    assert SHARE_OF_ROOM * 10 == 80
    with pytest.raises(Overloaded, match=r"client 'greedy' has 80 of the 90 images .* 10 places left"):
        admission.enter(*asked(admission, client_id="greedy"))
    for number in range(10):
        admission.enter(*asked(admission, client_id=f"client {number}"))
    with pytest.raises(Overloaded, match="90 images"):
        admission.enter(*asked(admission, client_id="one more"))


def test_a_client_that_holds_nothing_may_take_all_that_is_left() -> None:
    admission = opened(queue_limit=16)
    admission.enter(*asked(admission, num_images=16, client_id="a"))
    with pytest.raises(Overloaded):
        admission.enter(*asked(admission, client_id="a"))


def refusals() -> list[tuple[Admission, dict[str, Any]]]:
    full, tight, shared, late, hopeless = opened(1), opened(40, 100), opened(9), opened(), opened()
    full.enter(*asked(full))
    for _ in range(8):
        shared.enter(*asked(shared, client_id="a"))
    for number in range(30):
        late.enter(*asked(late, client_id=str(number), priority=10))
    return [
        (full, {}),
        (tight, {}),
        (shared, {"client_id": "a"}),
        (late, {"timeout_ms": 1400}),
        (hopeless, {"timeout_ms": 50}),
    ]


@pytest.mark.parametrize("case", range(5), ids=["room", "memory", "share", "backlog", "impossible"])
def test_a_refused_request_changes_nothing(case: int) -> None:
    admission, fields = refusals()[case]
    before = state_of(admission)
    for _ in range(3):
        with pytest.raises(Overloaded):
            admission.enter(*asked(admission, **fields))
    assert state_of(admission) == before


ENTRIES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["", "a", "b"]), st.integers(1, 50)), max_size=25)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(ENTRIES, st.randoms(use_true_random=False))
def test_all_counts_return_to_zero_when_all_have_left(entries: list[tuple[int, str, int]], chance: Any) -> None:
    admission = opened(queue_limit=60)
    held = []
    for images, client, calls in entries:
        request, cost = asked(admission, calls, num_images=images, client_id=client)
        try:
            dues = admission.enter(request, cost)
        except Overloaded:
            continue
        assert len(dues) == images
        held.append((request, cost, dues))
    assert admission._images == sum(request.num_images for request, _, _ in held) <= 60
    assert admission.backlog.total()[0] == pytest.approx(sum(c.seconds * r.num_images for r, c, _ in held))
    chance.shuffle(held)
    for request, cost, dues in held:
        admission.leave(request, cost)
        admission.forget(request, dues, cost)
    assert state_of(admission)[:4] == ((0.0, 0), 0, 0, {})  # type: ignore[index]


def test_a_request_may_grow_while_there_is_room() -> None:
    """When its prompts have been encoded, it is known what they hold."""
    admission = opened(queue_bytes=1 << 20)
    request, cost = asked(admission, num_images=4, client_id="a")
    dues = admission.enter(request, cost)
    room = (1 << 20) - 4 * cost.memory
    with pytest.raises(Overloaded, match="MiB"):
        admission.grow(request, cost, room // 4 + 1)
    grown = admission.grow(request, cost, room // 4)
    assert grown.memory == cost.memory + room // 4
    with pytest.raises(Overloaded, match="MiB"):
        admission.enter(*asked(admission, client_id="b"))
    admission.leave(request, grown)
    admission.forget(request, dues, grown)
    assert state_of(admission)[:4] == ((0.0, 0), 0, 0, {})  # type: ignore[index]


def test_a_client_does_not_owe_what_was_not_done() -> None:
    admission = opened(queue_limit=NO_LIMIT)
    request, cost = asked(admission, client_id="a")
    entered = [admission.enter(request, cost) for _ in range(10)]
    for dues in entered[3:]:
        admission.forget(request, dues, cost)
    admission.refund(request, 2 * cost.seconds)
    (due,), (usual,) = admission.enter(request, cost), admission.enter(*asked(admission, client_id="b"))
    assert due - usual == pytest.approx(cost.seconds)


def test_a_deadline_that_cannot_be_met_even_alone_is_refused_for_good() -> None:
    admission = opened()
    admission.decode_seconds = 0.05
    alone = 1000 * (20 * device(2) + 0.05)
    with pytest.raises(Overloaded, match=rf"an image of 20 UNet calls takes about {alone:.0f} ms even alone") as found:
        admission.enter(*asked(admission, timeout_ms=int(alone)))
    assert found.value.retry_after_ms is None
    admission.enter(*asked(admission, timeout_ms=int(alone) + 1))


def test_as_many_images_as_cannot_be_done_in_time_are_refused_for_good() -> None:
    """Coming later would not help: their own company is what takes the time."""
    admission = opened()
    needed = 1000 * max(20 * device(CAP), 16 * 20 * device(CAP) * 2 / CAP)
    with pytest.raises(Overloaded, match=r"16 images of 20 UNet calls take about .* even alone") as found:
        admission.enter(*asked(admission, num_images=16, timeout_ms=int(needed)))
    assert found.value.retry_after_ms is None
    admission.enter(*asked(admission, num_images=16, timeout_ms=int(needed) + 1))


def burst(count: int, calls: int = 20, **fields: Any) -> VirtualServer:
    """A server to which so many clients have just sent one request each."""
    server = VirtualServer()
    for number in range(count):
        server.submit(calls, client_id=f"client {number}", **fields)
    return server


def retry_after(server: VirtualServer, **fields: Any) -> int | None:
    """What a request is told that is refused now; None if it would be let in."""
    request = make_request(**fields)
    cost = server.cost(request, 20)
    try:
        server.admission._check_deadline(request, cost)
    except Overloaded as refusal:
        return refusal.retry_after_ms
    return None


def at_present(server: VirtualServer) -> VirtualServer:
    server._moment = server.now
    return server


@pytest.mark.parametrize("timeout_ms", [1500, 4000])
def test_a_deadline_that_the_backlog_prevents_is_refused_until_about_the_time_that_is_told(timeout_ms: int) -> None:
    server = burst(100, priority=10)
    fields: dict[str, Any] = {"client_id": "late", "timeout_ms": timeout_ms}
    wait = retry_after(server, **fields)
    assert wait is not None
    work = 1000 * 101 * 20 * device(CAP) * 2 / CAP
    assert work - timeout_ms <= wait <= CAUTION * (work - timeout_ms)
    began = server.now
    server.run(until=began + 0.8 * wait / 1000)
    assert retry_after(at_present(server), **fields) is not None
    server.run(until=began + 1.05 * wait / 1000)
    assert retry_after(at_present(server), **fields) is None
    job = server.submit(20, **fields)
    server.run()
    assert 0.3 <= 1000 * server.latency(job) / timeout_ms <= 1


def test_a_deadline_that_can_be_met_is_let_in_though_much_is_waiting() -> None:
    assert retry_after(burst(100), client_id="late", timeout_ms=20_000) is None
    assert retry_after(burst(100, calls=50), client_id="late", timeout_ms=20_000, priority=10) is None


def test_a_clients_own_backlog_counts_against_its_deadline_and_not_against_anothers() -> None:
    server = VirtualServer()
    for _ in range(300):
        server.submit(20, client_id="greedy")
    server.run(until=server.now + 1)
    assert retry_after(at_present(server), client_id="greedy", timeout_ms=4000) is not None
    assert retry_after(server, client_id="modest", timeout_ms=4000) is None


@pytest.mark.parametrize("steps", [(20,), (4, 20, 50)])
def test_those_that_were_let_in_end_in_time_on_an_overloaded_server_that_stays_busy(steps: tuple[int, ...]) -> None:
    """Twice as much comes as can be served; each request allows some seconds."""
    server, refused = VirtualServer(), 0
    capacity = 7 / device(CAP) / statistics.mean(steps)
    jobs: list[Job] = []
    for number, arrival in enumerate(poisson(2 * capacity, 500, steps, seed=2)):
        server.run(until=arrival.at)
        server.now = max(server.now, arrival.at)
        try:
            jobs.append(server.submit(arrival.calls, arrival.at, **arrival.fields, timeout_ms=(3000, 8000)[number % 2]))
        except Overloaded:
            refused += 1
    rows = [rows for _, rows in server.calls]
    server.run()
    late = sum(1000 * server.latency(job) > job.request.timeout_ms for job in jobs)
    assert late <= 0.05 * len(jobs)
    assert refused <= 300
    assert statistics.mean(rows) >= 0.85 * CAP


class Foretold(VirtualServer):
    """Remembers what was predicted of each job when it came."""

    def __init__(self) -> None:
        super().__init__()
        self.foretold: dict[Job, float] = {}

    def submit(self, calls: int, at: float | None = None, **fields: Any) -> Job:
        self._moment = self.now if at is None else at
        request = make_request(**fields)
        cost = self.cost(request, calls)
        due = self.admission._urgency.last_due(request, cost.seconds, cost.alone)
        predicted = self.admission.predict(due, 1, cost)
        job = super().submit(calls, at, **fields)
        assert job.due == pytest.approx(due)
        self.foretold[job] = predicted
        return job

    def errors(self) -> list[float]:
        return [predicted / self.latency(job) - 1 for job, predicted in self.foretold.items()]

    def bias(self) -> float:
        return sum(self.foretold.values()) / sum(map(self.latency, self.foretold)) - 1


def all_at_once(client: Callable[[int], str]) -> list[Arrival]:
    return [Arrival(1000.0, (4, 20, 50)[i * 7 % 3], {"client_id": client(i)}) for i in range(150)]


LOADS: dict[str, list[Arrival]] = {
    **{
        f"{kind} at {share}": poisson(share * 7 / device(CAP) / statistics.mean(steps), 250, steps, seed=4)
        for kind, steps in (("uniform", (20,)), ("mixed", (4, 20, 50)))
        for share in (0.3, 0.7, 0.9, 1.3)
    },
    "a burst of many clients": all_at_once(str),
    "a burst of one client": all_at_once(lambda number: ""),
}


@pytest.mark.parametrize("load", LOADS)
def test_predictions_are_about_right(load: str) -> None:
    """Jobs of several lengths may be overtaken by what comes later, which nobody can foresee."""
    server = Foretold()
    server.serve(LOADS[load])
    right = sum(abs(error) <= 0.3 for error in server.errors()) / len(LOADS[load])
    assert statistics.median(map(abs, server.errors())) <= 0.25
    assert right >= (0.85 if load.startswith("uniform") else 0.6)
    assert abs(server.bias()) <= 0.2
