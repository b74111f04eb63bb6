"""What a compiler says while it builds: progress for a bar, and its errors as sentences with a remedy."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Protocol

from tqdm import tqdm

from engines.errors import BuildError, MemoryShortage
from engines.manifest import Options

SIGNS_OF_SHORTAGE = (
    "out of memory", "outofmemory", "bad_alloc", "insufficient memory", "failed_allocation", "memoryallocation",
    # TensorRT says this where every tactic needs more scratch memory than there is.
    "could not find any implementation",
)  # fmt: skip
SIGN_OF_NO_DRIVER = "cuda_success"


class Watcher(Protocol):
    """Hears how far a build is; a phase with a parent is within one of the parent's steps."""

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of that many steps begins."""

    def advance(self, phase: str) -> None:
        """One of its steps is done."""


class Bar:
    """A progress bar of a build, on a terminal only.

    A phase counts for one step of its parent, so the bar shows how much of the work's outline is done, not of its time.

    Args:
        title: of the plan.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._done = 0.0
        # Of each phase: where it begins between 0 and 1, and how far one of its steps goes.
        self._phases: dict[str | None, tuple[float, float]] = {None: (0.0, 1.0)}
        layout = "{l_bar}{bar}| {elapsed}"
        self._bar: tqdm[NoReturn] = tqdm(desc=title, total=1.0, bar_format=layout, disable=None, leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *failure: object) -> None:
        self._bar.close()

    @property
    def done(self) -> float:
        """The part that is done, 0 to 1."""
        return self._done

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        start, width = self._phases.get(parent, (self.done, 0.0))
        self._phases[phase] = start, width / max(steps, 1)
        self._bar.set_description(f"{self._title}: {phase}")

    def advance(self, phase: str) -> None:
        start, step = self._phases[phase]
        self._phases[phase] = start + step, step
        farther = max(min(start + step, 1.0) - self._done, 0.0)
        self._done += farther
        self._bar.update(farther)


def unreadable(parser: Any) -> str:
    """Where and why an ONNX parser stopped."""
    if not parser.num_errors:
        return "no reason given"
    first = parser.get_error(0)
    node = f"{first.node_operator()} {first.node_name()}".strip()
    return f"{node}: {_one_line(first.desc())}" if node else _one_line(first.desc())


def failure(compiler: str, component: str, texts: list[str], options: Options) -> BuildError:
    """The error that a compiler's messages mean.

    Args:
        compiler: name and version.
        texts: in the order in which they came; at least one.
    """
    everything, first = " ".join(texts).lower(), _one_line(texts[0])
    if any(sign in everything for sign in SIGNS_OF_SHORTAGE):
        return MemoryShortage(f"{compiler} ran out of memory on {component} ({first})")
    if SIGN_OF_NO_DRIVER in everything and (options.refittable or options.stripped):
        return BuildError(
            f"{compiler} makes refittable and stripped plans only where there is an NVIDIA driver; "
            f"build {component} there, or without these options"
        )
    return BuildError(f"{compiler} cannot build {component}: {first}; try another --level or version")


def recorder(library: Any) -> Any:
    """An error recorder that keeps what it is told, as text with the code behind it, in `texts`."""

    class Recorder(library.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IErrorRecorder.__init__(self)
            self.texts: list[str] = []
            self._codes: list[Any] = []

        def num_errors(self) -> int:
            return len(self.texts)

        def get_error_code(self, index: int) -> Any:
            return self._codes[index]

        def get_error_desc(self, index: int) -> str:
            return self.texts[index]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.texts.clear()
            self._codes.clear()

        def report_error(self, code: Any, desc: str) -> bool:
            self.texts.append(f"{desc} {code}")
            self._codes.append(code)
            return True

    return Recorder()


def monitor(library: Any, watcher: Watcher) -> Any:
    """A progress monitor that tells `watcher`, and ends the build once it is `interrupted`."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watcher.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            watcher.advance(phase_name)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


@contextmanager
def heeding_interrupts(watching: Any) -> Iterator[None]:
    """Let Ctrl-C end the build through its monitor: as an exception it would be lost in the compiler's callbacks.

    Raises:
        KeyboardInterrupt: afterwards, if it was pressed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        watching.interrupted = True

    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt) if ours else None
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
        if watching.interrupted:
            raise KeyboardInterrupt


def _one_line(text: str) -> str:
    """A compiler's message, cut off where it would fill the screen."""
    return " ".join(text.split())[:300]
