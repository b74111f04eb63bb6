"""docs/monitoring: every name in the dashboard and the rules exists, and every expression can have a result."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.metric_names import METRICS, OUTCOMES, PREFIX

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
# PyYAML comes with the libraries that export; its stubs do not.
RULES: dict[str, Any] = importlib.import_module("yaml").safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))

# What Prometheus adds to everything that it scrapes.
TARGET = {"job", "instance"}
# Triton's own, as seen in the /metrics of 2.51.0, without a GPU and without flags.
TRITON = {
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_inference_count": {"model", "version"},
    "nv_inference_exec_count": {"model", "version"},
    "nv_inference_pending_request_count": {"model", "version"},
    "nv_cpu_utilization": set[str](),
    "nv_cpu_memory_total_bytes": set[str](),
    "nv_cpu_memory_used_bytes": set[str](),
}
GRAFANA = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*"}


def series_labels() -> dict[str, set[str]]:
    """The labels of every series that /metrics can have, by name."""
    found = {name: labels | TARGET for name, labels in TRITON.items()}
    for spec in METRICS:
        labels = {*spec.labels, *TARGET}
        if spec.kind == "histogram":
            found |= {f"{spec.full_name}_bucket": labels | {"le"}}
            found |= {f"{spec.full_name}_{part}": labels for part in ("sum", "count")}
        else:
            found[spec.full_name] = labels
    return found


LABELS = series_labels()
COUNTERS = {name for name in LABELS if re.fullmatch(PREFIX + r"\w+_(total|bucket|sum|count)", name)} | {
    name for name in TRITON if re.fullmatch(r"nv_inference_(request_success|request_failure|count|exec_count)", name)
}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression), with Grafana's variables put in; recording rules first and in order."""
    for rule in sorted(rules(), key=lambda rule: "alert" in rule):
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", with_variables(target["expr"])
    for note in DASHBOARD["annotations"]["list"]:
        if "expr" in note:
            yield note["name"], with_variables(note["expr"])


def with_variables(text: str) -> str:
    for name, value in GRAFANA.items():
        text = text.replace(name, value)
    assert "$" not in text
    return text


EXPRESSIONS = list(expressions())
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
every_expression = pytest.mark.parametrize("expr", [expr for _, expr in EXPRESSIONS], ids=[w for w, _ in EXPRESSIONS])


def names(expr: str) -> set[str]:
    """Metrics and recorded series, which are all that has such a prefix outside of strings and labels."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    return set(re.findall(r"[a-zA-Z_:]*(?:aquatint|nv)_[a-zA-Z0-9_:]+", bare))


@every_expression
def test_names_exist(expr: str) -> None:
    assert names(expr)
    assert names(expr) <= LABELS.keys() | RECORDED


@every_expression
def test_labels_exist_and_outcomes_are_real(expr: str) -> None:
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expr):
        for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', matchers):
            assert label in LABELS[name]
            if label == "outcome":
                assert set(value.split("|")) <= set(OUTCOMES)


@every_expression
def test_brackets_are_balanced(expr: str) -> None:
    opened = []
    for char in re.sub(r'"[^"]*"', "", expr):
        if char in "([{":
            opened.append(char)
        elif char in ")]}":
            assert opened
            assert opened.pop() + char in ("()", "[]", "{}")
    assert not opened


@every_expression
def test_counters_are_only_used_as_rates(expr: str) -> None:
    for counter in names(expr) & COUNTERS:
        uses = re.findall(rf"(\w+)\({counter}\b(?:{{[^}}]*}})?\[", expr)
        assert len(uses) == len(re.findall(rf"\b{counter}\b", expr))
        assert set(uses) <= {"rate", "increase"}


def test_every_metric_is_shown() -> None:
    shown = {name for where, expr in EXPRESSIONS if where not in RECORDED for name in names(expr)}
    missing = {spec.full_name for spec in METRICS if not any(name.startswith(spec.full_name) for name in shown)}
    assert missing == set()


class Checker:
    """Infers the labels of an expression's result, as Prometheus would match them; asserts that there can be one."""

    def __init__(self) -> None:
        self.parser: Any = pytest.importorskip("promql_parser")
        self.labels: dict[str, frozenset[str]] = {name: frozenset(labels) for name, labels in LABELS.items()}

    def check(self, expr: str) -> frozenset[str] | None:
        """Labels, or None for a number."""
        return self._of(self.parser.parse(expr))

    def _of(self, node: Any) -> frozenset[str] | None:
        match type(node).__name__:
            case "NumberLiteral" | "StringLiteral":
                return None
            case "VectorSelector":
                return self.labels[node.name]
            case "MatrixSelector":
                return self.labels[node.vector_selector.name]
            case "ParenExpr" | "SubqueryExpr" | "UnaryExpr":
                return self._of(node.expr)
            case "AggregateExpr":
                return self._of_aggregate(node)
            case "BinaryExpr":
                return self._of_binary(node)
            case "Call":
                return self._of_call(node)
        raise AssertionError(f"the checker knows nothing of {type(node).__name__}")

    def _of_aggregate(self, node: Any) -> frozenset[str]:
        inner = self._of(node.expr)
        assert inner is not None
        wanted = frozenset(node.modifier.labels if node.modifier else ())
        assert node.modifier is None or node.modifier.type == self.parser.AggModifierType.By
        assert wanted <= inner, f"{sorted(wanted - inner)} is not there to group by"
        return wanted

    def _of_binary(self, node: Any) -> frozenset[str] | None:
        left, right = self._of(node.lhs), self._of(node.rhs)
        if left is not None and right is not None:
            assert left == right, f"{sorted(left)} never match {sorted(right)}"
        return right if left is None else left

    def _of_call(self, node: Any) -> frozenset[str] | None:
        inner = [labels for argument in node.args if (labels := self._of(argument)) is not None]
        match node.func.name:
            case "time":
                return None
            case "absent":
                return frozenset()
            case "histogram_quantile":
                assert "le" in inner[0]
                return inner[0] - {"le"}
        return inner[0]


@pytest.fixture(scope="module")
def checker() -> Checker:
    """Knows the recorded series too, whose rules are in the order of their use."""
    made = Checker()
    for rule in rules():
        if "record" in rule:
            made.labels[rule["record"]] = made.check(rule["expr"]) or frozenset()
    return made


@every_expression
def test_expressions_parse_and_their_sides_match(checker: Checker, expr: str) -> None:
    checker.check(expr)


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(aquatint_queue_seconds_bucket[5m]",
        "sum by (banana) (aquatint_running)",
        "histogram_quantile(0.9, sum by (job) (rate(aquatint_queue_seconds_bucket[5m])))",
        "sum by (job) (aquatint_running) / aquatint_row_cap",
    ],
)
def test_the_checker_checks(checker: Checker, wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        checker.check(wrong)


def test_recorded_series_say_what_they_keep(checker: Checker) -> None:
    for name in RECORDED:
        level, _, _ = name.split(":")
        kept = {"job": {"job"}, "instance": {"job", "instance"}, "job_outcome": {"job", "outcome"}}[level]
        assert checker.labels[name] == kept, name


def test_recorded_series_are_recorded_before_they_are_used() -> None:
    seen: set[str] = set()
    for rule in rules():
        assert names(rule["expr"]) & RECORDED <= seen
        seen |= {rule.get("record", "")}
    assert len(RECORDED) == len([rule for rule in rules() if "record" in rule])


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: str(rule["alert"]))
def test_alerts_say_how_bad_it_is_and_what_to_do(rule: dict[str, Any], request: pytest.FixtureRequest) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["alert"].startswith("Aquatint")
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert len(rule["annotations"]["description"]) > 100
    mentioned = {label for text in rule["annotations"].values() for label in re.findall(r"\$labels\.(\w+)", text)}
    if mentioned:
        checker: Checker = request.getfixturevalue("checker")
        assert mentioned <= (checker.check(rule["expr"]) or frozenset())
    quoted = {name for text in rule["annotations"].values() for name in names(text)}
    assert quoted <= LABELS.keys() | RECORDED


def test_there_is_an_alert_for_what_matters_and_a_signal_to_scale_by() -> None:
    used = {rule["alert"]: rule["expr"] for rule in rules() if "alert" in rule}
    assert f"time() - {PREFIX}loop_heartbeat_timestamp_seconds > 30" in used["AquatintLoopStalled"]
    for topic in ("requests_error", "requests_overload", "queue_seconds:p95", "waiting:sum", "start_time_seconds"):
        assert any(topic in expr for expr in used.values()), topic
    assert "job:aquatint_replicas_desired:sum" in RECORDED


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert not re.search(r"https?://|localhost|\d+\.\d+\.\d+\.\d+", json.dumps(DASHBOARD))
    for panel in panels():
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for name in ("job", "instance"):
        assert names(variables[name]["definition"]) <= LABELS.keys()
        assert variables[name]["definition"].endswith(f", {name})")


def test_panels_are_labelled_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG"[: len(panel["targets"])])


def test_every_panel_follows_the_chosen_fleet_and_replica() -> None:
    for panel in panels():
        for target in panel["targets"]:
            selectors = re.findall(r"\{[^}]*\}", target["expr"])
            assert len(selectors) == len(re.findall(r"(?:aquatint|nv)_\w+", target["expr"]))
            assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors), panel["title"]


def test_rows_come_in_the_order_of_a_look() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Engine", "Health", "Triton"]
