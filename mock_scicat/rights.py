"""Who may do what, by SciCat's group settings (contract; observed of 4.27 unless marked "code")."""

from typing import Literal

from .accounts import User
from .config import EVERYBODY, Config
from .validation import Document


class Rights:
    """The rules for a set of group settings; `None` as user is somebody without a valid token."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def is_admin(self, user: User | None) -> bool:
        """Member of ADMIN_GROUPS."""
        return user is not None and _any_of(user, self._config.admin_groups)

    def deletes(self, user: User | None) -> bool:
        """Member of DELETE_GROUPS. Being admin, owner or ingestor does not help."""
        return user is not None and _any_of(user, self._config.delete_groups)

    def creates_dataset(self, user: User | None, owner_group: str, *, with_pid: bool) -> bool:
        """Admins and privileged groups for anybody; others for a group of their own, and without naming the pid."""
        if user is None:
            return False
        config = self._config
        if self.is_admin(user) or _any_of(user, config.create_dataset_privileged_groups):
            return True
        allowed = (*config.create_dataset_with_pid_groups, *(() if with_pid else config.create_dataset_groups))
        return owner_group in user.groups and (EVERYBODY in allowed or _any_of(user, allowed))

    def adds_blocks(self, user: User | None) -> bool:
        """SciCat checks the class, not the dataset: with CREATE_DATASET_GROUPS=#all anybody may add to any dataset."""
        if user is None:
            return False
        config = self._config
        privileged = config.create_dataset_privileged_groups + config.create_dataset_with_pid_groups
        allowed = config.create_dataset_groups + privileged
        return self.is_admin(user) or EVERYBODY in allowed or _any_of(user, allowed)

    def owns(self, user: User | None, document: Document) -> bool:
        """Admin, or member of the document's ownerGroup: who may PATCH a dataset."""
        return user is not None and (self.is_admin(user) or document.get("ownerGroup") in user.groups)

    def reads(self, user: User | None, document: Document) -> bool:
        """Who may read a dataset's blocks: owners, its accessGroups, everybody once it is published."""
        if document.get("isPublished") or self.owns(user, document):
            return True
        return user is not None and _any_of(user, tuple(document.get("accessGroups") or ()))

    def reads_dataset(self, user: User | None, dataset: Document) -> bool:
        """As `reads`, and the life-cycle groups: they may even include the blocks by a filter."""
        return self.reads(user, dataset) or self._changes_any_lifecycle(user)

    def changes_lifecycle(self, user: User | None, dataset: Document) -> bool:
        """Admin, ownerGroup members, UPDATE_DATASET_LIFECYCLE_GROUPS."""
        return self.owns(user, dataset) or self._changes_any_lifecycle(user)

    def _changes_any_lifecycle(self, user: User | None) -> bool:
        return _any_in_text(user, self._config.update_dataset_lifecycle_groups)

    def creates_any_job(self, user: User | None) -> bool:
        """Admin or CREATE_JOB_PRIVILEGED_GROUPS."""
        return self.is_admin(user) or _any_in_text(user, self._config.create_job_privileged_groups)

    def reads_job(self, user: User | None, job: Document) -> bool:
        """Admin, ownerUser, ownerGroup and the privileged groups; `update.auth` does not help to read (trap)."""
        if user is None:
            return False
        if self.is_admin(user) or _any_in_text(user, self._config.update_job_privileged_groups):
            return True
        if _any_in_text(user, self._config.create_job_privileged_groups):  # (code)
            return True
        return job.get("ownerUser") == user.username or job.get("ownerGroup") in user.groups

    def updates_job(self, user: User | None, job: Document) -> bool:
        """Admin, UPDATE_JOB_PRIVILEGED_GROUPS, or whom the type's `update.auth` names."""
        if user is None:
            return False
        if self.is_admin(user) or _any_in_text(user, self._config.update_job_privileged_groups):
            return True
        match self._config.job_update_auth:
            case "#all":
                return True
            case "#jobOwnerUser":
                return job.get("ownerUser") == user.username
            case "#jobOwnerGroup":
                return job.get("ownerGroup") in user.groups
            case auth if auth.startswith("@"):
                return auth[1:] in user.groups
            case auth:
                return auth == user.username

    def deletes_jobs(self, user: User | None) -> bool:
        """DELETE_JOB_GROUPS only."""
        return _any_in_text(user, self._config.delete_job_groups)


def may_use_dataset(
    auth: Literal["#datasetOwner", "#datasetAccess", "#datasetPublic"] | str, dataset: Document, group: str | None
) -> bool:
    """Does a job type's `create.auth` let a job of this group use the dataset?"""
    if auth == "#datasetPublic":
        return bool(dataset.get("isPublished"))
    if auth == "#datasetOwner":
        return dataset.get("ownerGroup") == group
    if auth == "#datasetAccess":
        access_groups = dataset.get("accessGroups") or ()
        return bool(dataset.get("isPublished")) or dataset.get("ownerGroup") == group or group in access_groups
    return True


def _any_of(user: User, groups: tuple[str, ...]) -> bool:
    return any(group in groups for group in user.groups)


def _any_in_text(user: User | None, setting: str) -> bool:
    # SciCat leaves these settings unsplit, so "group2" is found in "admins,group22" (observed).
    return user is not None and any(group in setting for group in user.groups)
