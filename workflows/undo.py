"""Undo: pushed before the deed, since a step may fail after having worked; run in reverse; each harmless twice."""

from collections.abc import Awaitable, Callable

Step = Callable[[], Awaitable[None]]


class UndoStack:
    """What has to be taken back if the archive ends before its commit point."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def push(self, step: Step) -> None:
        """Remember how to take back what is about to be done."""
        self._steps.append(step)

    def clear(self) -> None:
        """The commit point: from here nothing is taken back."""
        self._steps.clear()

    def __bool__(self) -> bool:
        return bool(self._steps)

    async def unwind(self) -> None:
        """Take everything back, the last deed first; may be called again for a second look."""
        for step in reversed(self._steps):
            await step()
