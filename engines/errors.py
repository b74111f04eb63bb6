"""Errors of compiled components.

* EngineError
    * ArtefactError    a file is missing, damaged or of another format
    * FeedError        what was fed does not fit the component's inputs
    * ProviderError    the asked execution provider is not here, or failed
"""


class EngineError(Exception):
    """Something about a component cannot be loaded or run; the text says what to do."""


class ArtefactError(EngineError):
    """An exported or compiled file is missing, damaged or of another format."""


class FeedError(EngineError):
    """Feeds whose names, types or shapes differ from the component's inputs."""


class ProviderError(EngineError):
    """An execution provider that is not available, or that failed."""
