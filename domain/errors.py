"""Every error that has a name.

ArchiverError
├── DatasetError            the user's to mend; ends that dataset at once, never retried
│   ├── UnknownDataset          the catalogue does not know the pid (deleted after the job was posted)
│   ├── NothingRegistered       no regular file stands in the original datablocks
│   ├── MissingFiles            registered, but absent from the landing zone or of another size
│   ├── UnsafePath              a name that must not reach a file system or an object key
│   ├── ConflictingEntries      the same path registered twice with different facts
│   ├── UploadUnfinished        a multipart upload below the dataset's prefix is still open
│   ├── ChangedWhileArchiving   the planned version of an object is gone
│   ├── DigestMismatch          the bytes are not those that the original datablock announces
│   ├── PartialArchive          an archive job that names single files
│   ├── ArchivedOtherwise       archived already, from other files than those registered now
│   ├── ForeignDatablocks       the catalogue holds datablocks that this service did not write
│   ├── BeingArchived           its archive is under way or asked for: not to be retrieved, uploaded or aborted now
│   ├── NothingUploaded         an upload is finalized although nothing lies below the dataset's prefix
│   ├── AlreadyFinalized        the upload is finalized: what lies there may be the only copy
│   ├── AlreadyArchived         an upload to, or an abort of, a dataset that is archived
│   ├── NotArchived             a retrieve of a dataset that is not retrievable
│   ├── Incomplete              the registered datablocks do not cover the registered files
│   └── NoAccess                the catalogue refuses the service account this dataset
├── JobError                a job that cannot be carried out as a whole, never retried
│   ├── UnknownJob              the catalogue does not know the job id
│   ├── JobRefused              the catalogue will never take this change of the job
│   └── UnknownJobType          neither archive nor retrieve
├── TokenRefused            whoever issued a user's token does not vouch for it; the API's to answer, never retried
├── UploadRefused           S3 does not make an object of the parts that a client names
└── InfrastructureError     ours to mend; retried, then the dataset is parked
    ├── ObjectStoreUnavailable
    ├── CatalogueUnavailable
    ├── IdentityProviderUnavailable
    ├── WorkflowUnanswered          no worker has answered in time
    ├── TapeUnavailable
    │   ├── Busy                    the LTS asks to be left alone for a while
    │   └── NoSpace                 the LTS has no room for now
    │       └── TooLarge                … and never will have for a file of that size
    ├── Damaged                 bytes read back are not the bytes written
    └── Misconfigured           a bucket is missing, credentials are refused …

`type(error).__name__` is what travels: Temporal keeps it as the failure's type, SciCat's job result as `class`.
"""


class ArchiverError(Exception):
    """Base of all errors raised on purpose; the text is a sentence for people and holds no secret."""


class DatasetError(ArchiverError):
    """Something about the dataset that its owner has to mend."""


class UnknownDataset(DatasetError):
    """The catalogue does not know the pid."""


class NothingRegistered(DatasetError):
    """No regular file stands in the dataset's original datablocks."""


class MissingFiles(DatasetError):
    """Registered files are absent from the landing zone or have another size."""


class UnsafePath(DatasetError):
    """A path is absolute, climbs, is empty, or has control characters."""


class ConflictingEntries(DatasetError):
    """One path is registered twice with different facts, or two paths cannot stand side by side."""


class UploadUnfinished(DatasetError):
    """A multipart upload below the dataset's prefix is still open."""


class ChangedWhileArchiving(DatasetError):
    """The version of an object that the plan pinned is gone."""


class DigestMismatch(DatasetError):
    """A file's bytes do not have the digest that its original datablock announces."""


class PartialArchive(DatasetError):
    """An archive job names single files; a dataset is archived whole or not at all."""


class ArchivedOtherwise(DatasetError):
    """The dataset is archived, from other files than those registered now."""


class ForeignDatablocks(DatasetError):
    """The catalogue holds datablocks for the dataset that this service did not write."""


class BeingArchived(DatasetError):
    """An archive of the dataset is under way and not committed, or a job for it waits."""


class NothingUploaded(DatasetError):
    """No object lies below the dataset's prefix in the landing zone."""


class AlreadyFinalized(DatasetError):
    """The upload of the dataset was finalized: nothing more is taken, and nothing is thrown away."""


class AlreadyArchived(DatasetError):
    """The dataset is archived."""


class NotArchived(DatasetError):
    """The dataset is not marked retrievable or has no datablocks."""


class Incomplete(DatasetError):
    """The registered datablocks do not cover the registered files."""


class NoAccess(DatasetError):
    """The catalogue refuses the service account access to this dataset."""


class JobError(ArchiverError):
    """A job that cannot be carried out as a whole."""


class UnknownJob(JobError):
    """The catalogue does not know the job id."""


class JobRefused(JobError):
    """The catalogue will never take this change of the job, e.g. because its dataset was deleted."""


class UnknownJobType(JobError):
    """A job of a type other than archive and retrieve."""


class TokenRefused(ArchiverError):
    """Catalogue or identity provider do not vouch for a user's token, or it is not enough."""


class UploadRefused(ArchiverError):
    """S3 does not make an object of the parts that a client names; what was uploaded stays."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
        """S3's word for it."""


class InfrastructureError(ArchiverError):
    """Something of ours that may pass, or that an operator has to mend."""

    retry_after_s: float = 0
    """How long whoever refused has asked us to wait."""


class ObjectStoreUnavailable(InfrastructureError):
    """S3 did not answer, or not with success."""


class CatalogueUnavailable(InfrastructureError):
    """SciCat did not answer, or not with success."""


class IdentityProviderUnavailable(InfrastructureError):
    """The identity provider did not answer, or not with success."""


class WorkflowUnanswered(InfrastructureError):
    """A workflow was told something, and no worker has answered in time: it may still come to pass."""


class TapeUnavailable(InfrastructureError):
    """The LTS did not answer, or not with success."""


class Busy(TapeUnavailable):
    """The LTS asks to be left alone for a while."""


class NoSpace(TapeUnavailable):
    """The LTS has no room for now."""


class TooLarge(NoSpace):
    """The LTS never has room for a file of that size."""


class Damaged(InfrastructureError):
    """Bytes read back are not the bytes that were written."""


class Misconfigured(InfrastructureError):
    """The set-up is wrong: a bucket is missing, credentials are refused."""


def _tree(base: type[ArchiverError]) -> dict[str, type[ArchiverError]]:
    """The class and all below it, by name."""
    tree = {base.__name__: base}
    for child in base.__subclasses__():
        tree |= _tree(child)
    return tree


def named(name: str, text: str) -> ArchiverError:
    """The error that travelled under this name; one that is none of ours is an infrastructure's."""
    return _tree(ArchiverError).get(name, InfrastructureError)(text)


DATASET_ERRORS = frozenset(_tree(DatasetError))
"""Names of all errors that are the user's to mend."""

JOB_ERRORS = frozenset(_tree(JobError))
"""Names of all errors that end a job as a whole."""

INFRASTRUCTURE_ERRORS = frozenset(_tree(InfrastructureError))
"""Names of all errors that may pass by themselves."""

NEVER_RETRIED = sorted(DATASET_ERRORS | JOB_ERRORS)
"""What goes into Temporal's `non_retryable_error_types`."""
