"""Errors of compiled components.

* EngineError
    * ArtefactError    a file is missing, damaged or of another format
    * FeedError        what was fed does not fit the component's inputs
    * ProviderError    the asked execution provider is not here, or failed
    * BuildError       a plan cannot be built as asked
        * MemoryShortage   the compiler ran out of memory, or found no tactic that fits into it
    * PlanError        a plan is stale, foreign or tampered with
"""


class EngineError(Exception):
    """Something about a component cannot be loaded or run; the text says what to do."""


class ArtefactError(EngineError):
    """An exported or compiled file is missing, damaged or of another format."""


class FeedError(EngineError):
    """Feeds whose names, types or shapes differ from the component's inputs."""


class ProviderError(EngineError):
    """An execution provider that is not available, or that failed."""


class BuildError(EngineError):
    """A plan that cannot be built as asked."""


class MemoryShortage(BuildError):
    """The compiler ran out of memory, or found no tactic that fits into it; fewer rows need less."""


class PlanError(EngineError):
    """A plan that is stale, made for another machine, or not what was built."""
