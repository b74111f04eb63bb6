"""What compilers say, as sentences and bars."""

import signal
import threading
from types import SimpleNamespace

import pytest

from engines.build_reports import Bar, failure, heeding_interrupts, monitor, recorder, unreadable
from engines.errors import BuildError, MemoryShortage
from engines.manifest import Options

LIBRARY = SimpleNamespace(
    IErrorRecorder=type("IErrorRecorder", (), {"__init__": lambda self: None}),
    IProgressMonitor=type("IProgressMonitor", (), {"__init__": lambda self: None}),
)


@pytest.mark.parametrize(
    "text",
    [
        "Error Code 2: OutOfMemory (Requested size was 12079599616 bytes.)",
        "CUDA out of memory",
        "std::bad_alloc",
        "Could not find any implementation for node {ForeignNode[...]}.",
        "no room ErrorCodeTRT.FAILED_ALLOCATION",
    ],
)
def test_every_way_of_saying_that_memory_is_short_is_understood(text: str) -> None:
    error = failure("tensorrt 11.4", "unet", ["something first", text], Options())
    assert isinstance(error, MemoryShortage)
    assert str(error) == "tensorrt 11.4 ran out of memory on unet (something first)"


def test_a_missing_driver_is_told_only_of_what_needs_one() -> None:
    text = "MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed."
    assert "NVIDIA driver" in str(failure("tensorrt_rtx 1.7", "unet", [text], Options(stripped=True)))
    assert "graph_jit" in str(failure("tensorrt_rtx 1.7", "unet", [text], Options()))


def test_other_failures_are_told_in_the_compilers_words_on_one_line() -> None:
    error = failure("tensorrt 11.4", "unet", ["Internal\n  error" + "." * 1000, "later"], Options())
    assert type(error) is BuildError
    assert str(error).startswith("tensorrt 11.4 cannot build unet: Internal error...")
    assert len(str(error)) < 400


def test_a_parser_without_reasons_is_no_crash() -> None:
    assert unreadable(SimpleNamespace(num_errors=0)) == "no reason given"


def test_a_recorder_keeps_what_it_is_told_until_it_is_cleared() -> None:
    errors = recorder(LIBRARY)
    assert errors.report_error(4, "first")
    assert (errors.num_errors(), errors.get_error_code(0), errors.get_error_desc(0)) == (1, 4, "first 4")
    assert not errors.has_overflowed()
    errors.clear()
    assert (errors.num_errors(), errors.texts) == (0, [])


class Listener:
    """A watcher that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        self.heard.append(f"{parent}/{phase} {steps}")

    def advance(self, phase: str) -> None:
        self.heard.append(phase)


def test_a_monitor_tells_of_phases_and_steps() -> None:
    listener = Listener()
    watching = monitor(LIBRARY, listener)
    watching.phase_start("Timing", "Building", 3)
    assert watching.step_complete("Timing", 0)
    watching.phase_finish("Timing")
    assert listener.heard == ["Building/Timing 3", "Timing"]


def test_an_interrupt_ends_the_build_at_its_next_step_and_is_raised_after_it() -> None:
    watching = monitor(LIBRARY, Listener())
    before = signal.getsignal(signal.SIGINT)
    went_on: list[bool] = []

    @heeding_interrupts(watching)
    def build() -> None:
        went_on.append(watching.step_complete("Timing", 0))
        signal.raise_signal(signal.SIGINT)
        went_on.append(watching.step_complete("Timing", 1))

    with pytest.raises(KeyboardInterrupt):
        build()
    assert went_on == [True, False]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_interrupts_alone() -> None:
    handlers = []

    def build() -> None:
        with heeding_interrupts(monitor(LIBRARY, Listener())):
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_a_phase_counts_for_one_step_of_its_parent(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("unet-64x64") as bar:
        bar.begin("Building", None, 2)
        bar.advance("Building")
        assert bar.done == 0.5
        bar.begin("Timing", "Building", 4)
        for _ in range(4):
            bar.advance("Timing")
        assert bar.done == 1.0
        bar.advance("Building")
        assert bar.done == 1.0
        bar.begin("More than was announced", "Unheard of", 0)
        bar.advance("More than was announced")
        assert bar.done == 1.0
    assert capsys.readouterr() == ("", "")
