"""Releases side by side: whose workers Temporal gives what to."""

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from settings import Settings
from workflows.queues import DEPLOYMENT


def deployment(settings: Settings) -> WorkerDeploymentConfig | None:
    """How a worker is versioned; None where no build is named, as in the local stack.

    A running workflow goes on with the build that is current, since recorded histories say that it can.
    """
    if not settings.worker_build_id:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(DEPLOYMENT, settings.worker_build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )
