"""What workflows count: each thing once, as it happens, and not again when a history is replayed."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from clients import telemetry
    from domain.metrics import Metric


def count(metric: Metric, **labels: str) -> None:
    """Add one to a counter."""
    if not workflow.unsafe.is_replaying():
        telemetry.count(metric, **labels)


def observe(metric: Metric, span: timedelta) -> None:
    """Put a time into a histogram."""
    if not workflow.unsafe.is_replaying():
        telemetry.observe(metric, span.total_seconds())
