"""The training loop: it resumes as if it had never stopped, and returns averaged weights."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from export.embedded.training import Average, Plan, learning_rate_factor, train

PLAN = Plan("toy", steps=30, learning_rate=1e-2, warmup=4, save_every=10, log_every=5)


def toy() -> nn.ModuleDict:
    torch.manual_seed(7)
    return nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 1)})


def loss_of(networks: nn.ModuleDict, stop_at: int | None = None) -> Callable[[int], torch.Tensor]:
    def loss_at(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        loss: torch.Tensor = (networks["second"](networks["first"](x).tanh()) - x.sum(1, keepdim=True)).square().mean()
        return loss

    return loss_at


def flat(weights: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{network}.{name}": value for network, inner in weights.items() for name, value in inner.items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    (tmp_path / "straight").mkdir()
    (tmp_path / "resumed").mkdir()
    networks = toy()
    straight = train(PLAN, networks, loss_of(networks), tmp_path / "straight", slow=("second",))

    stopped = toy()
    with pytest.raises(KeyboardInterrupt):
        train(PLAN, stopped, loss_of(stopped, stop_at=17), tmp_path / "resumed", slow=("second",))
    again = toy()
    nn.init.zeros_(again["first"].get_parameter("weight"))  # what is saved must replace what is there
    resumed = train(PLAN, again, loss_of(again), tmp_path / "resumed", slow=("second",))

    assert same(flat(resumed), flat(straight))
    assert same(again.state_dict(), networks.state_dict())
    assert not same(flat(straight), toy().state_dict())


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    networks = toy()
    done = train(PLAN, networks, loss_of(networks), tmp_path)
    other = toy()
    again = train(PLAN, other, loss_of(other, stop_at=PLAN.steps), tmp_path)
    assert same(flat(again), flat(done))
    assert same(other.state_dict(), networks.state_dict())


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    plan = Plan("toy", steps=200, learning_rate=3e-2, warmup=4, log_every=20)
    networks = toy()
    train(plan, networks, loss_of(networks), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 201, 20))
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]


def test_slow_networks_learn_at_a_quarter_of_the_rate(tmp_path: Path) -> None:
    networks = nn.ModuleDict({"fast": nn.Linear(2, 1, bias=False), "slow": nn.Linear(2, 1, bias=False)})
    for network in networks.values():
        nn.init.zeros_(network.get_parameter("weight"))

    def loss_at(step: int) -> torch.Tensor:
        x = torch.ones(1, 2)
        loss: torch.Tensor = (networks["fast"](x) + networks["slow"](x)).sum()
        return loss

    train(Plan("rates", steps=1, learning_rate=0.1, warmup=1), networks, loss_at, tmp_path, slow=("slow",))
    fast, slow = (networks[name].get_parameter("weight") for name in ("fast", "slow"))
    torch.testing.assert_close(fast, torch.full((1, 2), -0.1))
    torch.testing.assert_close(slow, fast / 4)


def test_the_quick_parameter_learns_at_eight_times_the_rate(tmp_path: Path) -> None:
    networks = nn.ModuleDict({"only": nn.Linear(2, 1)})
    for parameter in networks.parameters():
        nn.init.zeros_(parameter)

    def loss_at(step: int) -> torch.Tensor:
        loss: torch.Tensor = networks["only"](torch.ones(1, 2)).sum()
        return loss

    plan = Plan("rates", steps=1, learning_rate=0.1, warmup=1)
    train(plan, networks, loss_at, tmp_path, quick="only.weight")
    weight, bias = (networks["only"].get_parameter(name) for name in ("weight", "bias"))
    torch.testing.assert_close(weight, torch.full((1, 2), -0.8))
    torch.testing.assert_close(bias, torch.tensor([-0.1]))


def test_the_result_is_the_average_and_not_the_last_step(tmp_path: Path) -> None:
    networks = toy()
    expected = {name: value.clone() for name, value in networks.state_dict().items()}
    compute = loss_of(networks)

    def loss_at(step: int) -> torch.Tensor:
        if step:  # the weights after step - 1 updates, averaged with a decay that grows from 1 / 10
            average_in(step - 1)
        return compute(step)

    def average_in(step: int) -> None:
        for name, value in networks.state_dict().items():
            expected[name] += (1 - (1 + step) / (10 + step)) * (value - expected[name])

    weights = flat(train(Plan("toy", steps=12, learning_rate=1e-2, warmup=2), networks, loss_at, tmp_path))
    average_in(11)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name])
    assert not same(weights, networks.state_dict())


def test_an_average_counts_what_is_no_float() -> None:
    network = nn.BatchNorm1d(2)
    average = Average(network)
    network(torch.randn(4, 2))
    average.update(network, step=0)
    assert average.weights["num_batches_tracked"] == 1


def test_the_average_moves_by_a_thousandth_in_the_long_run() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = Average(network)
    nn.init.ones_(network.weight)
    average.update(network, step=10**6)
    assert average.weights["weight"].item() == pytest.approx(0.001, rel=1e-4)


def test_the_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    plan = Plan("rates", steps=1000, learning_rate=1.0, warmup=200, floor=0.1)
    factors = [learning_rate_factor(step, plan) for step in range(1001)]
    assert factors[0] == 1 / 200
    assert factors[99] == 0.5
    assert factors[199] == factors[200] == 1
    assert factors[600] == pytest.approx((1 + 0.1) / 2)
    assert factors[1000] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(factors[200:]))


def test_the_learning_rate_is_defined_without_a_warm_up_or_a_rest() -> None:
    assert learning_rate_factor(0, Plan("none", steps=10, learning_rate=1.0, warmup=0)) == 1
    assert learning_rate_factor(5, Plan("all", steps=5, learning_rate=1.0, warmup=5)) == 1
