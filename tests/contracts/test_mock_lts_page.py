"""The page of the pretend tape library shows what the library does, and holds no markup from outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.mock_lts import Clock, call, create, inject, instant, process, serving, stage, to_tape_only
from tests.fakes.processes import free_port

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium")

DOM = """
class Node{constructor(tag){this.tag=tag;this.style={};this.inside=[];this.className=''}
 append(...x){this.inside.push(...x)} replaceChildren(...x){this.inside=x}
 set textContent(t){this.inside=[String(t)]} set innerHTML(_){throw 'markup'}
 get text(){return this.inside.map(x=>x.text??String(x)).join(' ')}
 get bars(){return [this.style.width??this.style.height??[],...this.inside.map(x=>x.bars??[])].flat(9)}}
const known={};for(const id of IDS)known[id]=new Node(id)
const getElementById=id=>{if(!(id in known))throw 'no '+id;return known[id]}
globalThis.document={getElementById,createElement:tag=>new Node(tag)}
globalThis.fetch=async()=>({ok:true,json:async()=>STATE});globalThis.setTimeout=()=>{}
"""
REPORT = """
;(async()=>{await 0;await 0;await 0;await 0
 console.log(JSON.stringify(Object.fromEntries(Object.entries(known).map(([id,e])=>[id,{text:e.text,bars:e.bars}]))))})()
"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def lts(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(instant(tmp_path, tapes=3, drives=2, tape_capacity_mb=0.001), clock) as client:
        yield client


class Page(HTMLParser):
    """Which elements there are, and what is loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """html.parser's."""
        found = dict(attrs)
        self.ids += [value for name, value in found.items() if name == "id" and value]
        self.loaded += [value for name, value in found.items() if name in ("src", "href") and value]


async def test_the_page_needs_nothing_from_elsewhere(lts: httpx.AsyncClient):
    answer = await lts.get("/")
    page = Page(answer.text)
    assert page.loaded == []
    assert "http" not in answer.text
    assert "url(" not in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert set(re.findall(r"(?:\$|fill)\('(\w+)'", script)) == set(page.ids)
    assert "innerHTML" not in script


async def shown(lts: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    """What the page's own program makes of the library's state: text and bar lengths by element."""
    html = (await lts.get("/")).text
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    state = (await lts.get("/admin/state")).text
    program = f"const IDS={json.dumps(Page(html).ids)},STATE={state};{DOM}{script}{REPORT}"
    ran = subprocess.run([NODE or "node"], input=program.encode(), capture_output=True, check=False, timeout=20)  # noqa: ASYNC221
    assert ran.returncode == 0, ran.stderr.decode()
    return json.loads(ran.stdout)


@pytest.mark.skipif(NODE is None, reason="there is no node to run the page's program")
async def test_the_page_shows_what_there_is(lts: httpx.AsyncClient):
    for path in ("<b>bold</b>", "far"):
        await to_tape_only(lts, path, b"x" * 250)
    await stage(lts, "<b>bold</b>")
    await lts.put("/files/fresh", content=b"12345")
    await inject(lts, kind="tape_offline", tape="ML0001L9")
    await stage(lts, "far")
    url = await create(lts, "coming", 100)
    await lts.patch(
        url,
        content=b"x" * 25,
        headers={"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
    )
    seen = await shown(lts)
    assert "ML0001L9 500 B offline" in seen["shelf"]["text"]
    assert seen["shelf"]["bars"] == ["50%", "0%", "0%"]
    assert "drive 1 empty" in seen["drives"]["text"]
    assert seen["cached"]["text"] == "255 B of 40.0 GB"
    assert "from ML0001L9: far" in seen["queues"]["text"]
    assert "to tape 5 B 1 files" in seen["queues"]["text"]
    assert (seen["uploads"]["text"].split(), seen["uploads"]["bars"]) == (
        ["coming", "25", "B", "of", "100", "B"],
        ["25%"],
    )
    assert "tape_offline tape ML0001L9" in seen["faults"]["text"]
    assert "<b>bold</b> 250 B DISK_AND_TAPE ML0001L9 1" in seen["files"]["text"]


@pytest.mark.skipif(NODE is None, reason="there is no node to run the page's program")
async def test_the_page_shows_a_drive_at_work(tmp_path: Path, clock: Clock):
    config = instant(tmp_path, time_factor=1.0, migrate_bytes=0)
    async with serving(config, clock) as lts:
        await lts.put("/files/f", content=b"x" * 100)
        clock.now += 13 + 8.5
        (before, *_) = (await lts.get("/admin/state")).json()["drives"]
        assert (before["phase"], before["until"] - before["since"]) == ("loading", 17.0)
        seen = await shown(lts)
        assert "drive 0 loading" in seen["drives"]["text"]
        assert seen["drives"]["bars"] == ["50%"]


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_a_real_browser_draws_it(tmp_path: Path):
    port = free_port()
    with process(tmp_path / "state", port), tempfile.TemporaryDirectory() as profile:
        call(port, "PUT", "/files/seen", body=b"12345")
        dom = subprocess.run(
            [
                *(CHROMIUM or "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
                *("--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{port}/"),
            ],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout.decode()
    assert "ML0001L9" in dom
    assert ">seen<" in dom
    assert "5 B of" in dom
