"""What the checks of `varlit doctor` say."""

from collections.abc import Callable, Iterator
from typing import Literal

Verdict = Literal["ok", "warn", "fix"]
Finding = tuple[Verdict, str, str]
"""The verdict, its subject, and the text: what is needed, what is there, and the cure."""
Check = Callable[[], Iterator[Finding]]
