"""Recall by reading: a share in front of tape has no other request than to ask for a byte, which may take hours."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

_READS = 200
"""Reads at a time, as many as one request names: the tape system can only sort what it knows of."""


class Recaller:
    """Reads a byte of each file that shall come back, in threads that nobody waits for, each file once at a time."""

    def __init__(self, read: Callable[[str], None], reads: int = _READS) -> None:
        """Start nothing yet.

        Args:
            read: returns when the file's bytes are there; raises what the store has to say.
            reads: threads at most.
        """
        self._read, self._reads = read, reads
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._asked: set[str] = set()
        self._failed: dict[str, Exception] = {}
        self._running = 0

    def ask(self, path: str) -> Exception | None:
        """Begin to read, unless that is under way; return how the last read failed, if it did, and forget it."""
        with self._lock:
            failed = self._failed.pop(path, None)
            if path not in self._asked:
                self._asked.add(path)
                self._waiting.append(path)
                if self._running < self._reads:
                    self._running += 1
                    # A daemon: one that hangs in a read must not hold up the end of the process.
                    threading.Thread(target=self._run, name="lts-recall", daemon=True).start()
        return failed

    def withdraw(self, paths: Iterable[str] | None = None) -> None:
        """Begin no read of these paths, or of any; what is being read goes on, since nothing can stop it."""
        with self._lock:
            dropped = set(self._waiting if paths is None else paths)
            self._asked -= dropped & set(self._waiting)
            self._waiting = deque(path for path in self._waiting if path not in dropped)
            for path in dropped:
                self._failed.pop(path, None)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                path = self._waiting.popleft()
            try:
                self._read(path)
                failed = None
            except Exception as error:
                failed = error
            with self._lock:
                self._asked.discard(path)
                if failed is not None:
                    self._failed[path] = failed
