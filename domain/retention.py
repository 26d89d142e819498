"""How long an object stays in the retrieval bucket, and how the sweep and a new retrieval keep out of each other's way.

|---- kept, and renewed when it is asked for again ----|---- left alone ----|---- removed
                                                 keep_until              + MARGIN

In between nobody touches it: a retrieval brings it back anew instead of relying on it, and the sweep waits. So what
was found whole is never removed a moment later.
"""

from datetime import datetime, timedelta

MARGIN = timedelta(hours=1)
"""More than clocks differ, and more than lies between a look and what is done about it."""


def may_be_renewed(keep_until: datetime, now: datetime) -> bool:
    """Whether a retrieval may take the object as it lies there, and so keep it for longer."""
    return now < keep_until


def is_due(keep_until: datetime, now: datetime) -> bool:
    """Whether the sweep may remove the object."""
    return now >= keep_until + MARGIN


def is_worth_renewing(keep_until: datetime, wanted: datetime) -> bool:
    """Whether keeping it until `wanted` differs enough to be written down."""
    return wanted - keep_until > MARGIN
