"""The demo on a small folder of awkward files, against a local stack of its own: the main job from end to end."""

from pathlib import Path

import pytest

from cli import client, demo
from cli.demo import FEWEST_BLOCKS, Report, demo_overrides
from cli.ingest import scan
from cli.ports import Ports
from cli.session import generate_session
from cli.stack import Stack
from domain.lifecycle import Phase


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small session, names as people give them, an empty file, and things that stay behind."""
    folder = tmp_path / "data"
    generate_session(folder / "session", total_bytes=20 << 20)
    for name in ("a b+c%20d.txt", 'it\'s "quoted" $HOME `id`.txt', "-rf", "ü/é/日本.mrc", ".hidden", "CASE", "case"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "empty").touch()
    (folder / "link").symlink_to("empty")
    return folder


@pytest.mark.timeout(300)
async def test_everything_comes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    inventory = scan(folder)
    assert [remark.path for remark in inventory.skipped] == ["link"]
    work = tmp_path / "work"
    work.mkdir()
    report = Report()

    async with Stack(tmp_path / "stack", Ports.free(), demo_overrides(len(inventory.files))) as stack:
        await demo.demonstrate(
            client.stack_connection(stack.settings, stack.ports),
            inventory,
            work,
            report,
            source=str(folder),
            fewest_blocks=FEWEST_BLOCKS,
            await_eviction=True,
        )

    assert report.problems == []
    steps = [name.strip() for name, _, _ in report.steps]
    assert steps[0] == "upload and register"
    assert steps[-2:] == ["download, check, unpack", "compare"]
    assert {"archive", "retrieve", Phase.RECALLING.value} <= set(steps)
    assert len(report.links) == 5
    assert report.links[2][0] == "cartridges, drives and queues"
