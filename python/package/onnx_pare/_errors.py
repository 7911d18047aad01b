"""The exceptions of the package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._reports import OptimizeReport


class PareError(Exception):
    """An operation that did not succeed.

    Attributes:
        message: One sentence.
        hint: The remedy, if one is known.
        detail: The part of the input that is wrong, underlined, if there is one.
    """

    def __init__(self, message: str, hint: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def __str__(self) -> str:
        hint = f"hint: {self.hint}" if self.hint else None
        return "\n".join(line for line in (self.message, self.detail, hint) if line)

    def __reduce__(self) -> tuple[type[PareError], tuple[str | None, ...]]:
        return type(self), (self.message, self.hint, self.detail)


class Rejected(PareError):
    """A result that does not keep what the passes promise, or that exceeds a limit. Nothing was written.

    Attributes:
        report: The report; `report["proof"]["failures"]` lists broken promises and exceeded limits.
        reproducer: The smallest part of the model that fails in the same way, as bytes of a model file, if a pass is at
            fault and one was found.
    """

    def __init__(
        self, message: str, hint: str | None, report: str | OptimizeReport, reproducer: bytes | None = None
    ) -> None:
        super().__init__(message, hint)
        self.report: OptimizeReport = json.loads(report) if isinstance(report, str) else report
        self.reproducer = reproducer

    def __reduce__(self) -> tuple[type[PareError], tuple[str | None, ...]]:
        return type(self), (self.message, self.hint, json.dumps(self.report), self.reproducer)  # type: ignore[return-value]
