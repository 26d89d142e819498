"""Control calls against a server that misbehaves on the wire."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from clients.control import ControlCalls
from domain.errors import TapeUnavailable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def asking(serve: Serve, *, timeout_s: float = 5) -> AsyncGenerator[tuple[ControlCalls, str]]:
    """Calls to a server that does with each connection what it is told."""

    served: list[asyncio.Task[None]] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.create_task(once(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    control = ControlCalls("lts", TapeUnavailable, ca_file=None, connect_timeout_s=5, timeout_s=timeout_s)
    try:
        yield control, f"http://{host}:{port}"
    finally:
        await control.aclose()
        server.close()
        await asyncio.gather(*served)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"Content-Length: 10\r\n\r\nhello", id="cut-short"),
        pytest.param(OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", id="no-gzip"),
        pytest.param(b"SMTP ready\r\n\r\n", id="not-http"),
        pytest.param(b"", id="hangs-up"),
    ],
)
async def test_what_is_no_answer_is_told_in_time(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with asking(serve, timeout_s=0.5) as (control, url), asyncio.timeout(10):
        with pytest.raises(TapeUnavailable, match="looking: no answer"):
            await control.ask("looking", "GET", f"{url}/x")


@pytest.mark.parametrize(
    ("begin", "then"),
    [
        pytest.param(b"Content-Length: 10\r\n\r\nhello", b"", id="stops"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"ZZ\r\n", id="malformed-chunk"),
    ],
)
async def test_an_answer_that_goes_wrong_half_way_is_told_in_time(begin: bytes, then: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + begin)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(then)
        await reader.read()

    async with asking(serve, timeout_s=0.5) as (control, url), asyncio.timeout(10):
        with pytest.raises(TapeUnavailable, match="Timeout"):
            await control.ask("looking", "GET", f"{url}/x")


@pytest.mark.parametrize("said", [b"", OK + b"Content-Length: 10\r\n\r\nhello"], ids=["hangs-up", "cut-short"])
async def test_a_question_is_asked_once_more_and_an_order_is_not(said: bytes) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).split()[0])
        writer.write(OK + b"Content-Length: 2\r\n\r\nok" if seen.count(b"GET") == 2 else said)

    async with asking(serve) as (control, url):
        with pytest.raises(TapeUnavailable):
            await control.ask("changing", "POST", f"{url}/x", body={"a": 1})
        assert (await control.ask("looking", "GET", f"{url}/x")).body == b"ok"
    assert seen == [b"POST", b"GET", b"GET"]


async def test_a_large_order_arrives_whole() -> None:
    got = asyncio.Queue[bytes]()
    body = {"files": ["ü" * 1_000] * 1_000}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await got.put(await reader.readexactly(size))
        writer.write(OK + b"Content-Length: 0\r\n\r\n")

    async with asking(serve) as (control, url):
        assert (await control.ask("registering", "POST", f"{url}/x?q=%2F", body=body)).ok
    assert (await got.get()).decode() == '{"files":[' + ",".join(['"' + "ü" * 1_000 + '"'] * 1_000) + "]}"
