"""The download script, run by a real bash against a real HTTP server with ranges."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from domain.downloadscript import DownloadLink, download_script

CHUNK = 64 * 1024
TOOLS = [
    "awk",
    "bash",
    "chmod",
    "cmp",
    "dd",
    "find",
    "locale",
    "mkdir",
    "mktemp",
    "mv",
    "perl",
    "readlink",
    "rm",
    "sed",
    "sleep",
    "tail",
    "tr",
    "wc",
]


@dataclass
class Served:
    """One object of the server, and how it misbehaves."""

    body: bytes
    status: int = 200
    cut_after: list[int] = field(default_factory=list[int])
    """The first answers end after so many bytes."""
    damaged: int = 0
    """The first so many answers carry a wrong byte."""
    ranges: bool = True


@dataclass
class Server:
    url: str
    objects: dict[str, Served]
    requests: list[tuple[str, str]]
    """(path, Range header) of every request."""


@pytest.fixture
def server() -> Iterator[Server]:
    objects: dict[str, Served] = {}
    requests: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            wanted = self.headers.get("Range", "")
            requests.append((path, wanted))
            served = objects[path]
            if served.status != 200:
                self.send_error(served.status)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and served.ranges else 0
            body = served.body[start:]
            if start >= len(served.body):
                self.send_error(416)
                return
            if served.damaged > 0:
                served.damaged -= 1
                body = bytes([body[0] ^ 1]) + body[1:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(served.body) - 1}/{len(served.body)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if served.cut_after:
                self.wfile.write(body[: served.cut_after.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Server(f"http://127.0.0.1:{httpd.server_port}", objects, requests)
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def composite(body: bytes, chunk: int = CHUNK) -> str:
    digests = [hashlib.sha256(body[i : i + chunk]).digest() for i in range(0, len(body), chunk)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def tar_of(files: Mapping[str, bytes], prefix: str = "", tags: Mapping[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in [*((prefix + n, c) for n, c in files.items()), *(tags or {}).items()]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o640
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def publish(server: Server, name: str, files: Mapping[str, bytes], *, chunk: int = CHUNK) -> DownloadLink:
    """Put a datablock with these payload files on the server."""
    top = name.removesuffix(".tar")
    body = tar_of(files, f"{top}/data/", {f"{top}/bagit.txt": b"BagIt-Version: 1.0\n", f"{top}/members.jsonl": b"{}\n"})
    return put(server, name, body, chunk=chunk)


def put(server: Server, name: str, body: bytes, *, chunk: int = CHUNK) -> DownloadLink:
    path = f"/{len(server.objects)}.tar"
    server.objects[path] = Served(body)
    url = f"{server.url}{path}?X-Amz-Signature=a&b=$HOME"
    return DownloadLink(url, name, len(body), chunk, composite(body, chunk))


def random_bytes(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(size)


@dataclass
class Run:
    """A folder to run scripts in, with a $PATH of just the tools that a test allows."""

    folder: Path
    tools: Path

    @property
    def data(self) -> Path:
        return self.folder / "extracted"

    def __call__(self, *links: DownloadLink, title: str = "a title", **env: str) -> subprocess.CompletedProcess[str]:
        return self.text(download_script(links, title=title), **env)

    def text(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.tools / "bash")],
            input=script,
            cwd=self.folder,
            env={"PATH": str(self.tools), "HOME": str(self.folder), "DOWNLOAD_RETRY_SECONDS": "0", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def tree(self, folder: Path | None = None) -> dict[str, bytes]:
        root = folder or self.data
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def make_run(folder: Path, *extra: str, tar: str = "tar") -> Run:
    tools = folder / "tools"
    tools.mkdir()
    for tool in (*TOOLS, *extra):
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"no {tool} here")
        (tools / tool).symlink_to(found)
    found = shutil.which(tar)
    if found is None:
        pytest.skip(f"no {tar} here")
    (tools / "tar").symlink_to(found)
    (folder / "run").mkdir()
    return Run(folder / "run", tools)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path, "curl", "sha256sum")


FILES = {
    "movies/a 1.tiff": random_bytes(150_000),
    "movies/deep/ü+%20'\"$(touch broken).mrc": random_bytes(70_000, 1),
    "empty": b"",
    "._appledouble": b"x",
    ".hidden/-dash": b"y",
    "x" * 200 + "/" + "y" * 200: b"long",
}


@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
@pytest.mark.parametrize("sha", ["sha256sum", "shasum"])
@pytest.mark.parametrize("fetcher", ["curl", "wget"])
def test_datablocks_merge_to_the_original_folder(
    server: Server, tmp_path: Path, tar: str, sha: str, fetcher: str
) -> None:
    run = make_run(tmp_path, fetcher, sha, tar=tar)
    names = list(FILES)
    first = publish(server, "20.500-abc_1_00000000.tar", {n: FILES[n] for n in names[::2]})
    second = publish(server, "20.500-abc_2_00000000.tar", {n: FILES[n] for n in names[1::2]})

    result = run(first, second)

    assert result.returncode == 0, result.stderr
    assert run.tree() == FILES
    assert sorted(p.name for p in (run.folder / "downloads").iterdir()) == [first.name, second.name]
    assert not list(run.data.glob(".unpacking*"))
    assert "done" in result.stderr
    assert result.stdout == ""


def test_a_small_tar_of_one_chunk_is_checked_by_the_same_digest(server: Server, run: Run) -> None:
    link = publish(server, "one.tar", {"f": b"1"}, chunk=16 << 20)

    assert run(link).returncode == 0
    assert run.tree() == {"f": b"1"}


def test_an_odd_chunk_size_is_read_in_units_of_itself(server: Server, run: Run) -> None:
    link = publish(server, "odd.tar", {"f": random_bytes(50_000)}, chunk=12_345)

    result = run(link)

    assert result.returncode == 0, result.stderr


def test_folders_are_those_of_the_environment(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", {"f": b"1"})

    result = run(link, DOWNLOAD_FOLDER="-tars here", EXTRACTION_FOLDER=f"{run.folder}/it's $HOME")

    assert result.returncode == 0, result.stderr
    assert (run.folder / "-tars here" / "a.tar").is_file()
    assert run.tree(run.folder / "it's $HOME") == {"f": b"1"}


def test_datasets_of_one_job_unpack_side_by_side(server: Server, run: Run) -> None:
    one = replace(publish(server, "a.tar", {"same": b"1"}), folder="20.500-a")
    two = replace(publish(server, "b.tar", {"same": b"2"}), folder="20.500-b $(id)")

    result = run(one, two)

    assert result.returncode == 0, result.stderr
    assert run.tree() == {"20.500-a/same": b"1", "20.500-b $(id)/same": b"2"}


@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
def test_a_plain_tar_of_the_original_system_unpacks_as_it_is(server: Server, tmp_path: Path, tar: str) -> None:
    run = make_run(tmp_path, "curl", "sha256sum", tar=tar)
    link = replace(put(server, "old.tar", tar_of({"raw/x": b"1", "y": b"2"})), bagged=False)

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert run.tree() == {"raw/x": b"1", "y": b"2"}


def test_an_intact_file_is_not_fetched_again_and_a_second_run_changes_nothing(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    assert run(link).returncode == 0
    before = {path: path.stat().st_ino for path in run.data.rglob("*")}
    server.requests.clear()

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert server.requests == []
    assert {path: path.stat().st_ino for path in run.data.rglob("*")} == before


@pytest.mark.parametrize("fetcher", ["curl", "wget"])
def test_a_partial_download_goes_on_where_it_ended(server: Server, tmp_path: Path, fetcher: str) -> None:
    run = make_run(tmp_path, fetcher, "sha256sum")
    link = publish(server, "a.tar", FILES)
    (run.folder / "downloads").mkdir()
    (run.folder / "downloads" / "a.tar.part").write_bytes(server.objects["/0.tar"].body[:100_000])

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert server.requests == [("/0.tar", "bytes=100000-")]
    assert run.tree() == FILES


@pytest.mark.parametrize("fetcher", ["curl", "wget"])
def test_a_cut_connection_is_taken_up_again(server: Server, tmp_path: Path, fetcher: str) -> None:
    run = make_run(tmp_path, fetcher, "sha256sum")
    link = publish(server, "a.tar", FILES)
    server.objects["/0.tar"].cut_after = [50_000, 60_000]

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert [r for _, r in server.requests] == ["", "bytes=50000-", "bytes=110000-"]
    assert run.tree() == FILES


def test_a_server_without_ranges_is_asked_for_all(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    server.objects["/0.tar"].ranges = False
    (run.folder / "downloads").mkdir()
    (run.folder / "downloads" / "a.tar.part").write_bytes(b"z" * 1000)

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert run.tree() == FILES


def test_a_finished_file_that_was_damaged_since_is_fetched_again(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    (run.folder / "downloads").mkdir()
    body = bytearray(server.objects["/0.tar"].body)
    body[-1] ^= 1
    (run.folder / "downloads" / "a.tar").write_bytes(body)

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert "is damaged" in result.stderr
    assert run.tree() == FILES


def test_a_download_damaged_once_is_fetched_again(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    server.objects["/0.tar"].damaged = 1

    result = run(link)

    assert result.returncode == 0, result.stderr
    assert len(server.requests) == 2
    assert run.tree() == FILES


@pytest.mark.parametrize("fault", ["damaged", "short", "long"])
def test_a_download_that_stays_wrong_fails_and_unpacks_nothing(server: Server, run: Run, fault: str) -> None:
    good = publish(server, "good.tar", {"g": b"1"})
    link = publish(server, "a.tar", FILES)
    served = server.objects["/1.tar"]
    if fault == "damaged":
        served.damaged = 9
    else:
        served.body = served.body[:-512] if fault == "short" else served.body + bytes(512)

    result = run(good, link)

    assert result.returncode == 1
    assert "arrived damaged twice" in result.stderr
    assert run.tree() == {}
    assert not (run.folder / "downloads" / "a.tar").exists()
    assert (run.folder / "downloads" / "good.tar").exists()


@pytest.mark.parametrize("fetcher", ["curl", "wget"])
@pytest.mark.parametrize("status", [403, 404])
def test_an_expired_link_sends_to_scicat(server: Server, tmp_path: Path, status: int, fetcher: str) -> None:
    run = make_run(tmp_path, fetcher, "sha256sum")
    link = publish(server, "a.tar", FILES)
    server.objects["/0.tar"].status = status
    (run.folder / "downloads").mkdir()
    part = run.folder / "downloads" / "a.tar.part"
    part.write_bytes(server.objects["/0.tar"].body[:1000])

    result = run(link)

    assert result.returncode == 1
    assert "Ask again in SciCat" in result.stderr
    assert "Signature" not in result.stderr
    assert len(server.requests) == 1
    assert part.stat().st_size == 1000


def test_a_server_that_is_not_there_is_given_up_after_five_tries(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    server.objects["/0.tar"].status = 503

    result = run(link)

    assert result.returncode == 1
    assert "HTTP 503" in result.stderr
    assert len(server.requests) == 5


def test_a_differing_file_is_named_and_left_as_it_is(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    mine = run.data / "movies" / "a 1.tiff"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    (run.data / "empty").mkdir()

    result = run(link)

    assert result.returncode == 1
    assert "a 1.tiff" in result.stderr
    assert "/empty" in result.stderr
    assert "2 file(s)" in result.stderr
    rest = {name: content for name, content in FILES.items() if name not in ("movies/a 1.tiff", "empty")}
    assert run.tree() == {**rest, "movies/a 1.tiff": b"my own"}
    assert not list(run.data.glob(".unpacking*"))


def test_one_differing_file_among_identical_ones_is_the_only_one_named(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", FILES)
    assert run(link).returncode == 0
    (run.data / "._appledouble").write_bytes(b"X")

    result = run(link)

    assert result.returncode == 1
    assert result.stderr.count("differs and is left") == 1
    assert "._appledouble" in result.stderr
    assert run.tree() == {**FILES, "._appledouble": b"X"}


def test_nothing_is_written_through_a_link_in_the_goal(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", {"movies/x": b"1"})
    elsewhere = run.folder / "elsewhere"
    elsewhere.mkdir()
    run.data.mkdir()
    (run.data / "movies").symlink_to(elsewhere)

    result = run(link)

    assert result.returncode == 1
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["a b.tar", "it's.tar", '"q".tar', "$(touch broken).tar", "`touch broken`.tar", "-rf.tar", "*[a]?.tar",
     "new\nline; touch broken.tar", "back\\slash.tar", "a:b.tar", "#1 {x}.tar", "ü.tar"],
)  # fmt: skip
@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
def test_hostile_names_are_only_names(server: Server, tmp_path: Path, name: str, tar: str) -> None:
    run = make_run(tmp_path, "curl", "sha256sum", tar=tar)
    (run.tools / "touch").symlink_to(shutil.which("touch") or "touch")
    link = publish(server, name, {"f": b"1"})

    result = run(link, title="a\ntouch broken\n$(touch broken) @LINKS@ @TITLE@")

    assert result.returncode == 0, result.stderr
    assert run.tree() == {"f": b"1"}
    assert [p.name for p in (run.folder / "downloads").iterdir()] == [name]
    assert sorted(p.name for p in run.folder.iterdir()) == ["downloads", "extracted"]


def test_a_url_cannot_bring_options_of_its_own(server: Server, run: Run) -> None:
    link = publish(server, "a.tar", {"f": b"1"})
    hostile = replace(link, url=link.url + '"\noutput = "broken" \\ [1-3] $(touch broken)')

    result = run(hostile)

    assert result.returncode == 0, result.stderr
    assert len(server.requests) == 1  # [1-3] would be three to curl
    assert sorted(p.name for p in run.folder.iterdir()) == ["downloads", "extracted"]


@pytest.mark.parametrize("missing", ["tar", "curl", "sha256sum"])
def test_a_missing_tool_is_named(server: Server, run: Run, missing: str) -> None:
    (run.tools / missing).unlink()

    result = run(publish(server, "a.tar", {"f": b"1"}))

    assert result.returncode == 1
    assert missing in result.stderr


def test_a_truncated_script_does_nothing(server: Server, run: Run) -> None:
    script = download_script([publish(server, "a.tar", {"f": b"1"})], title="t")

    result = run.text(script[: script.index("main </dev/null")])

    assert result.returncode == 0
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"name": "a/b"}, {"name": ".."}, {"name": ""}, {"name": "a\0"}, {"folder": "../x"}, {"size_bytes": 0},
     {"chunk_bytes": 0}, {"digest": "ABC"}],
)  # fmt: skip
def test_what_quoting_cannot_tame_is_refused(change: dict[str, str]) -> None:
    link = replace(DownloadLink("http://h/x", "a.tar", 1, 1, "0" * 64), **change)

    with pytest.raises(ValueError, match=r"."):
        download_script([link], title="t")


def test_no_links_and_names_twice_are_refused() -> None:
    link = DownloadLink("http://h/x", "a.tar", 1, 1, "0" * 64)

    with pytest.raises(ValueError, match="each with a name"):
        download_script([], title="t")
    with pytest.raises(ValueError, match="each with a name"):
        download_script([link, replace(link, name="A.tar")], title="t")


def test_the_script_is_for_an_old_bash() -> None:
    """bash 3.2 is not at hand, so at least its known gaps are avoided by name."""
    script = download_script([DownloadLink("http://h/x", "a.tar", 1, 1, "0" * 64)], title="t")

    for newer in ("declare -A", "local -A", "mapfile", "readarray", ",,}", "^^}", "&>>", "|&", "coproc", "[-1]"):
        assert newer not in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_many_files_unpack_at_speed(server: Server, run: Run) -> None:
    """Four thousand files in two datablocks that share a folder: no process per file."""
    files = {f"movies/{n:05d}": b"%d" % n for n in range(4000)}
    names = list(files)
    links = [publish(server, f"{i}.tar", {n: files[n] for n in names[i::2]}) for i in range(2)]
    counter = run.tools / "mv"
    counter.unlink()
    counter.write_text(f'#!{shutil.which("bash")}\necho >>{run.folder}/moves\nexec {shutil.which("mv")} "$@"\n')
    counter.chmod(0o755)

    result = run(*links)

    assert result.returncode == 0, result.stderr
    assert len(os.listdir(run.data / "movies")) == 4000  # noqa: PTH208
    assert len((run.folder / "moves").read_text()) < 20
