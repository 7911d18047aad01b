"""Progress of operations: events through `logging`, steps as a bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias, Union

logger = logging.getLogger("onnx_pare")

Progress: TypeAlias = Union[bool, Callable[[str, int, int], None], None]
"""True or false to show a bar, or a function `(stage, done, total)`. None shows a bar in terminals and notebooks."""


class Host:
    """Receives the progress of one operation. Its methods are called on the thread that called the operation."""

    def __init__(self, progress: Progress) -> None:
        self._report = progress if callable(progress) else None
        self._bar_class = _bar_class(progress)
        self._stage: str | None = None
        self._bar: Any = None

    def step(self, stage: str, done: int, total: int) -> None:
        """Reports that `done` of `total` units of a stage are done."""
        if self._report is not None:
            self._report(stage, done, total)
        if self._bar_class is None:
            return
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage = stage
            self._bar = self._bar_class(total=total, desc=stage, leave=False)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def note(self, text: str) -> None:
        """Reports an event."""
        logger.info("%s", text)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _bar_class(progress: Progress) -> Any:
    if callable(progress) or progress is False:
        return None
    if progress is None and not (_is_notebook() or sys.stderr.isatty()):
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm


def _is_notebook() -> bool:
    """Returns true in a kernel of Jupyter; importing nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
