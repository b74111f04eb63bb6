"""What LoadGen 6.0.17 wrote of runs, read."""

from pathlib import Path

import pytest

from bench.loadgen.summary import SUMMARY, parsed, read_summary
from server.errors import ServerError

HEAD = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
"""
SERVER = f"""{HEAD}Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 47.96
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 147 queries.
 * Would need to run at least 312 more queries,
 with the run being successful if every additional
 query were under latency.

================================================
Additional Stats
================================================
Scheduled samples per second : 48.14
50.00 percentile latency (ns)   : 10697358
99.00 percentile latency (ns)   : 14763061
99.90 percentile latency (ns)   : 15949056

================================================
Test Parameters Used
================================================
target_qps : 50

No warnings encountered during test.

1 ERROR encountered. See detailed log.
"""
OFFLINE = f"""{HEAD}Scenario : Offline
Mode     : PerformanceOnly
Samples per second: 10.7224
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes

================================================
Test Parameters Used
================================================
target_qps : 13

No warnings encountered during test.

No errors encountered during test.
"""


def test_an_invalid_run_says_why() -> None:
    summary = parsed(SERVER)
    assert not summary.valid
    assert summary.reasons == (
        "Performance constraints satisfied: no",
        "Early stopping satisfied: no",
        "Reduce target QPS to improve latency.",
        "Run unsuccessful.",
        "Processed 147 queries.",
        "Would need to run at least 312 more queries, with the run being successful if every additional "
        "query were under latency.",
        "1 ERROR encountered. See detailed log.",
    )
    assert summary.samples_per_second("Server") == 47.96
    assert summary.percentiles == pytest.approx({"p50": 10.697358, "p99": 14.763061, "p99.9": 15.949056})
    assert "target_qps" not in summary.figures


def test_a_valid_run() -> None:
    summary = parsed(OFFLINE)
    assert (summary.valid, summary.reasons) == (True, ())
    assert summary.samples_per_second("Offline") == 10.7224


@pytest.mark.parametrize("text", [None, "", "\nNo warnings encountered during test.\n"])
def test_no_summary(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / SUMMARY).write_text(text)
    with pytest.raises(ServerError, match=r"says nothing of a result.*mlperf_log_detail\.txt"):
        read_summary(tmp_path)
