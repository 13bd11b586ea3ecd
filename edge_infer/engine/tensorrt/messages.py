"""What TensorRT says, collected instead of spilled on standard error.

TensorRT keeps the first logger that it is given for the whole process, so there is one. What it says goes to
whoever collects at that moment, and is dropped where nobody does.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL = ("outofmemory", "memoryallocation", "couldnotbeallocated", "insufficientmemory")
"""What errors of full memory hold, as CUDA_ERROR_OUT_OF_MEMORY and `GPU memory allocation failed` do."""

MOST_MESSAGES = 1000
"""Kept by one collection; a build says more only where something repeats."""


@dataclass(frozen=True, slots=True)
class Message:
    """One line of TensorRT's."""

    is_error: bool
    text: str


class Messages:
    """What TensorRT said, in order: errors and warnings."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._said: list[Message] = []

    def add(self, message: Message) -> None:
        """Take one more, if there are not too many."""
        if len(self._said) < MOST_MESSAGES:
            self._said.append(message)

    def errors(self) -> list[str]:
        """Texts of the errors, each once."""
        return list(dict.fromkeys(message.text for message in self._said if message.is_error))

    def warnings(self) -> list[str]:
        """Texts of the warnings, each once."""
        return list(dict.fromkeys(message.text for message in self._said if not message.is_error))

    def out_of_memory(self) -> bool:
        """Whether an error tells of full memory."""
        texts = [text.replace(" ", "").replace("_", "").lower() for text in self.errors()]
        return any(word in text for word in _FULL for text in texts)

    def reason(self) -> str:
        """Put the errors in one line, for a message of ours."""
        return "; ".join(" ".join(text.split()) for text in self.errors()[:3]) or "it gives no reason"


_collections: list[Messages] = []
_logger: Any = None
_making = threading.Lock()


@contextmanager
def collected() -> Iterator[Messages]:
    """Collect what TensorRT says while entered, on whatever thread."""
    messages = Messages()
    _collections.append(messages)
    try:
        yield messages
    finally:
        _collections.remove(messages)


def shared_logger(trt: Any) -> Any:
    """Give the one logger of this process, for a Builder or a Runtime."""
    global _logger  # noqa: PLW0603 - TensorRT itself keeps one a process
    with _making:
        if _logger is None:
            _logger = _make_logger(trt)
        return _logger


def _make_logger(trt: Any) -> Any:
    severities = trt.ILogger.Severity
    errors = (severities.INTERNAL_ERROR, severities.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in errors or severity == severities.WARNING:
                message = Message(severity in errors, text)
                for messages in tuple(_collections):
                    messages.add(message)

    return Logger()
