"""A task queue for each scarce resource."""

CONTROL = "control"
"""All workflows, the catalogue, and every other light step."""

ARCHIVAL = "archival"
"""Writes to the LTS; its slots are the number of datablocks written at a time."""

RETRIEVAL = "retrieval"
"""Reads from the LTS: verification and recalled copies."""

ALL = (CONTROL, ARCHIVAL, RETRIEVAL)

DEPLOYMENT = "scopemarchiver"
"""Temporal's name for the workers of all queues together, where they are versioned."""
