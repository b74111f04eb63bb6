"""Limits, and those that nothing meets."""

from __future__ import annotations

import argparse

import pytest

from bench.traffic.slo import Slo, add_slo_options, slos_of
from server.errors import ServerError


def parsed(*texts: str) -> list[Slo]:
    parser = argparse.ArgumentParser()
    add_slo_options(parser)
    return slos_of(parser.parse_args(texts))


def test_limits_are_multiples_or_seconds() -> None:
    assert Slo(multiple=3.0).limit(0.5) == 1.5
    assert Slo(seconds=2.0).limit(0.5) == 2.0
    assert [str(slo) for slo in parsed("--slo", "2", "5", "--slo-ms", "250")] == ["5x", "2x", "250 ms"]
    assert parsed() == [Slo(multiple=3.0)]
    assert parsed("--slo-ms", "500") == [Slo(seconds=0.5)]


@pytest.mark.parametrize("texts", [["--attainment", "1"], ["--attainment", "0"]])
def test_a_share_is_between_none_and_all(texts: list[str]) -> None:
    with pytest.raises(ServerError, match="give a share between 0 and 1"):
        parsed(*texts)


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan", "x"])
def test_a_limit_is_positive(text: str) -> None:
    with pytest.raises(SystemExit):
        parsed("--slo", text)


def test_what_takes_longer_alone_is_told() -> None:
    alone, share = {"short": 0.1, "long": 1.0}, {"short": 0.97, "long": 0.03}
    Slo(seconds=0.5).check(alone, share, 0.95)
    with pytest.raises(ServerError, match="nothing meets 500 ms: even alone the longest requests take 1000 ms"):
        Slo(seconds=0.5).check(alone, {"short": 0.9, "long": 0.1}, 0.95)
    with pytest.raises(ServerError, match=r"nothing meets 0\.5x"):
        Slo(multiple=0.5).check(alone, share, 0.95)
