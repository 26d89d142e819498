"""One page for people: which datasets and jobs there are, and how they fare."""

from html import escape

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from .context import WorldDep
from .validation import Document

router = APIRouter(include_in_schema=False)

ROWS_LIMIT = 200

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; --good: #2a8a4a; --bad: #c0392b; --busy: #2a6fb0 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem } p { color: var(--dim); margin: 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th { color: var(--dim); font-weight: 500; text-align: left; font-size: .85rem }
th, td { border-bottom: 1px solid var(--line); padding: .45rem .8rem .45rem 0; vertical-align: top }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } code { font-size: .85rem }
.good { color: var(--good) } .bad { color: var(--bad) } .busy { color: var(--busy) }
"""


@router.get("/")
async def show_page(world: WorldDep) -> HTMLResponse:
    """The newest 200 datasets and jobs; loads itself anew every two seconds."""
    datasets = _table(
        ("pid", "name", "owner group", "#size", "#files", "#archived", "archive status", "retrieve status"),
        [_dataset_row(dataset) for dataset in world.store.list("datasets", newest=ROWS_LIMIT)],
    )
    jobs = _table(
        ("id", "type", "datasets", "owner", "created", "status"),
        [_job_row(job) for job in world.store.list("jobs", newest=ROWS_LIMIT)],
    )
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>SciCat stand-in</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="2">'
        f"<style>{_STYLE}</style></head><body><h1>SciCat stand-in</h1><p>A pretend catalogue for this machine.</p>"
        f"<h2>Datasets ({world.store.count('datasets')})</h2>{datasets}"
        f"<h2>Jobs ({world.store.count('jobs')})</h2>{jobs}</body></html>"
    )


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    cells = "".join(f'<th class="number">{h[1:]}</th>' if h[0] == "#" else f"<th>{h}</th>" for h in heads)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _dataset_row(dataset: Document) -> str:
    lifecycle = dataset["datasetlifecycle"]
    return (
        f"<tr><td><code>{escape(dataset['pid'])}</code></td><td>{escape(str(dataset['datasetName']))}</td>"
        f"<td>{escape(str(dataset['ownerGroup']))}</td>"
        f'<td class="number">{_size(dataset["size"])}</td><td class="number">{dataset["numberOfFiles"]}</td>'
        f'<td class="number">{dataset["numberOfFilesArchived"]}</td>{_status(lifecycle.get("archiveStatusMessage"))}'
        f"{_status(lifecycle.get('retrieveStatusMessage'))}</tr>"
    )


def _job_row(job: Document) -> str:
    pids = [str(entry["pid"]) for entry in job["jobParams"].get("datasetList", [])]
    more = f" and {len(pids) - 1} more" if len(pids) > 1 else ""
    return (
        f"<tr><td><code>{escape(job['id'])}</code></td><td>{escape(job['type'])}</td>"
        f"<td><code>{escape(''.join(pids[:1]))}</code>{more}</td>"
        f"<td>{escape(str(job.get('ownerUser', '')))}</td>"
        f"<td>{escape(job['createdAt'])}</td>{_status(job['statusCode'])}</tr>"
    )


def _status(status: object) -> str:
    text = str(status or "")
    lowered = text.lower()
    kind = "busy"
    if any(word in lowered for word in ("fail", "error", "unsuccessful")):
        kind = "bad"
    elif any(word in lowered for word in ("finished", "ondisk", "onarchive", "retrieved")):
        kind = "good"
    return f'<td class="{kind}">{escape(text)}</td>'


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
