"""What running workflows of an earlier release do otherwise: names for `workflow.patched` (decision 11).

Each goes when no workflow can be left that began before it, after which its branch is the only one.
"""

RESUME_WHAT_ENDED = "resume-what-ended-paused"
"""Jobs of before tell nothing to a dataset that has ended while they are paused."""

COPIED_BEFORE_CANCEL = "all-copied-before-a-cancel"
"""For retrievals of before, a cancel that comes with the last copy's end counts."""

ALL = (RESUME_WHAT_ENDED, COPIED_BEFORE_CANCEL)
