"""`python -m tests.compose ...`: podman in the storage of these tests, to look inside while they run, or to clear it.

python -m tests.compose ps

python -m tests.compose system reset --force
"""

import os
import sys

from tests.compose.engine import environment

if __name__ == "__main__":
    os.execvpe("podman", ["podman", *sys.argv[1:]], environment())  # noqa: S606 - no shell is wanted
