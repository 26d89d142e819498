"""Where everything lies: object keys, LTS paths and workflow ids, and how to read them back.

openem-network/datasets/<pid>/raw_files/<path>               landing zone
openem-network/datasets/<pid>/datablocks/<name>.tar          LTS, retrieval bucket, and SciCat's archiveId
datasets/<pid>/<plan digest>/…                               state bucket
"""

import re

from domain.errors import UnsafePath
from domain.files import check_path
from domain.pid import check_pid, flat

_DATASETS = "openem-network/datasets"

ALL_DATASETS = f"{_DATASETS}/"
"""Folder of all that is ours on the LTS."""

MAX_KEY_BYTES = 1024
"""S3's longest key."""

REBUILT = "rebuilt"
"""Stands for the plan digest in the keys of manifests that were made anew from the tar: the plan is lost."""


def raw_prefix(pid: str) -> str:
    """Prefix of the dataset's raw files in the landing zone; its slash keeps `…/abcd` out of `…/abc`."""
    return f"{_DATASETS}/{pid}/raw_files/"


def raw_key(pid: str, path: str) -> str:
    """Key of one raw file."""
    return raw_prefix(pid) + path


def check_raw_key(key: str, pid: str = "") -> str:
    """Return the key if it names a raw file of the dataset, or of any where none is given.

    A token says that its holder may upload, not for which dataset: this is the only fence between datasets.

    Raises:
        UnsafePath: another place, longer than S3 allows, with backslashes, or a pid or path that is refused by itself.
    """
    pid = check_pid(pid or dataset_of(key))
    prefix = raw_prefix(pid)
    if not key.startswith(prefix):
        raise UnsafePath(f"the object name does not begin with {prefix!r}")
    path = check_path(key.removeprefix(prefix))
    if "\\" in path or len(key.encode()) > MAX_KEY_BYTES:
        raise UnsafePath(f"the object name has a backslash or more than {MAX_KEY_BYTES} bytes")
    return key


def datablocks_prefix(pid: str) -> str:
    """Folder of the dataset's datablocks."""
    return f"{_DATASETS}/{pid}/datablocks/"


def datablock_stem(pid: str, index: int, block_digest: str) -> str:
    """Name of a datablock without `.tar`: also the top folder inside the tar."""
    return f"{flat(pid)}_{index}_{block_digest[:8]}"


def archive_id(pid: str, stem: str) -> str:
    """Path on the LTS, key in the retrieval bucket and SciCat's `archiveId` in one."""
    return f"{datablocks_prefix(pid)}{stem}.tar"


def stem_of(archive_id: str) -> str:
    """The datablock's name without folder and `.tar`."""
    return archive_id.rsplit("/", 1)[-1].removesuffix(".tar")


def is_ours(pid: str, archive_id: str) -> bool:
    """Whether an archiveId has the shape that this service gives to datablocks of this dataset."""
    pattern = re.escape(f"{datablocks_prefix(pid)}{flat(pid)}_") + r"[0-9]+_[0-9a-f]{8}\.tar"
    return re.fullmatch(pattern, archive_id) is not None


def check_archive_id(pid: str, archive_id: str) -> str:
    """Return a datablock's archiveId if it lies in its dataset's own folder, whoever registered it.

    It says what is read from the LTS and delivered to the dataset's owners: one that led elsewhere would give them
    somebody else's data.

    Raises:
        UnsafePath: outside that folder, or no tame path.
    """
    if not check_path(archive_id).startswith(datablocks_prefix(pid)):
        raise UnsafePath(f"the datablock {archive_id!r} does not lie in the folder of its dataset {pid}")
    return archive_id


def state_prefix(pid: str) -> str:
    """Folder of all that the state bucket knows of a dataset."""
    return f"datasets/{pid}/"


def plan_key(pid: str, plan_digest: str) -> str:
    """The plan: which files go into which datablock."""
    return f"{state_prefix(pid)}{plan_digest}/plan.jsonl"


def manifest_key(pid: str, plan_digest: str, stem: str) -> str:
    """Chunk digests and members of one written datablock, kept for ever."""
    return f"{state_prefix(pid)}{plan_digest}/{stem}.manifest.jsonl"


def verified_key(pid: str, plan_digest: str, stem: str) -> str:
    """Mark: every byte of the datablock was read back and matched."""
    return f"{state_prefix(pid)}{plan_digest}/{stem}.verified"


def committed_key(pid: str, plan_digest: str) -> str:
    """Mark: all datablocks are safe and registered."""
    return f"{state_prefix(pid)}{plan_digest}/committed"


def superseded_key(pid: str, plan_digest: str) -> str:
    """archiveIds of an earlier, uncommitted plan, taken out of the catalogue; their files go after the commit point."""
    return f"{state_prefix(pid)}{plan_digest}/superseded.json"


def datablocks_key(pid: str) -> str:
    """The datablocks that a retrieval is about."""
    return f"{state_prefix(pid)}datablocks.json"


def journal_prefix(pid: str, plan_digest: str, stem: str) -> str:
    """Folder of a running write's journal."""
    return f"{state_prefix(pid)}{plan_digest}/{stem}/"


def journal_key(pid: str, plan_digest: str, stem: str, first_chunk: int) -> str:
    """One journal segment; the number is padded so that keys sort as chunks do."""
    return f"{journal_prefix(pid, plan_digest, stem)}journal-{first_chunk:06d}.jsonl"


def dataset_of(path: str) -> str:
    """The dataset that a path on the LTS or a key in the landing zone or retrieval bucket belongs to; else empty."""
    found = re.fullmatch(rf"{_DATASETS}/(.+?)/(?:raw_files|datablocks|restored)/.+", path, re.DOTALL)
    return found[1] if found else ""


RETRIEVED = "retrieved/"
"""Folder of the records of the retrieval bucket."""


def retrieved_key(key: str) -> str:
    """Record of an object in the retrieval bucket: its composite digest and how long it is kept."""
    return f"{RETRIEVED}{key}.json"


def restored_key(pid: str, path: str) -> str:
    """Key of a single restored file in the retrieval bucket."""
    return f"{_DATASETS}/{pid}/restored/{path}"


def streams_prefix(queue: str) -> str:
    """State about the streams to the LTS that the workers of one queue share."""
    return f"streams/{queue}/"


def stream_key(queue: str, number: int) -> str:
    """Who holds this one of them."""
    return f"{streams_prefix(queue)}{number}"


def stream_mark_key(queue: str) -> str:
    """Written by whoever goes without one."""
    return f"{streams_prefix(queue)}wanted"


def orphan_key(archive_id: str) -> str:
    """Record of a file on a write-once LTS that belongs to no archived dataset."""
    return f"orphans/{archive_id}.json"


def job_prefix(job_id: str) -> str:
    """Folder of all that the state bucket knows of a job."""
    return f"jobs/{job_id}/"


def job_datasets_key(job_id: str) -> str:
    """The job's dataset list, as read from the catalogue."""
    return f"{job_prefix(job_id)}datasets.json"


def restore_list_key(job_id: str, n: int) -> str:
    """The datablocks and files that the job's n-th dataset restores."""
    return f"{job_prefix(job_id)}restore-{n}.json"


REPORTS = "reports/consistency/"
"""Folder of the reports on what does not match between the stores."""

LATEST_REPORT = f"{REPORTS}latest.json"


def report_key(name: str) -> str:
    """A finished report, by the time at which it was begun."""
    return f"{REPORTS}{name}.json"


def report_page_key(name: str, page: int) -> str:
    """A part of a report that is being made."""
    return f"{report_pages_prefix(name)}{page:06d}.json"


def report_pages_prefix(name: str) -> str:
    """Folder of a report's parts."""
    return f"{REPORTS}{name}/"


def outcome_key(job_id: str, n: int) -> str:
    """How the job's n-th dataset ended."""
    return f"{job_prefix(job_id)}outcomes/{n}.json"


def job_workflow(job_id: str) -> str:
    """Workflow id of a job."""
    return f"job/{job_id}"


def archive_workflow(pid: str) -> str:
    """Workflow id of a dataset's archive."""
    return f"archive-dataset/{pid}"


def upload_workflow(pid: str) -> str:
    """Workflow id of a dataset's upload."""
    return f"upload/{pid}"


LANDING_ZONE = "landing-zone"
"""Workflow id of the one that admits uploads."""


def retrieve_workflow(pid: str) -> str:
    """Workflow id of a dataset's retrieval."""
    return f"retrieve-dataset/{pid}"


def restore_workflow(pid: str, job_id: str) -> str:
    """Workflow id of the restoring of single files: no two jobs share it, since each names files of its own."""
    return f"{retrieve_workflow(pid)}/files/{job_id}"


def belongs_to(workflow_id: str) -> tuple[str, str]:
    """The job and the dataset that a workflow is about by its id; either may be empty."""
    kind, _, rest = workflow_id.partition("/")
    if kind == "job":
        return rest, ""
    pid, _, job_id = rest.partition("/files/")
    return job_id, pid
