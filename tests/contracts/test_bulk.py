"""Blocking HTTP against servers that answer too little, too much, too early, or not at all."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clients.bulk import ConnectionPool, TransferFailed
from tests.fakes.canned import Canned, CannedServer

DATA = bytes(range(256)) * 4096


@pytest.fixture
def server() -> Iterator[CannedServer]:
    with CannedServer() as server:
        yield server


@pytest.fixture
def pool(server: CannedServer) -> Iterator[ConnectionPool]:
    pool = ConnectionPool(server.url, timeout_s=10)
    yield pool
    pool.close()


def test_bytes_go_into_the_buffer_and_connections_are_kept(server: CannedServer, pool: ConnectionPool) -> None:
    server.says("GET", "/a", Canned(206, DATA, {"X-Said": "yes"}))
    for _ in range(3):
        buffer = bytearray(len(DATA))
        answer = pool.request("GET", "/a", {}, into=memoryview(buffer))
        assert buffer == DATA
        assert (answer.status, answer.headers["x-said"], answer.body) == (206, "yes", b"")
    assert server.connections == 1


def test_views_are_sent_one_after_another(server: CannedServer, pool: ConnectionPool) -> None:
    server.says("PUT", "/a", Canned(200, b"thanks"))
    view = memoryview(DATA)
    answer = pool.request("PUT", "/a", {"Content-Length": str(len(DATA))}, body=[view[:1000], view[1000:]])
    assert (answer.status, answer.body) == (200, b"thanks")
    pool.request("PUT", "/a", {}, body=view)
    pool.request("PUT", "/a", {}, body=memoryview(b""))
    pool.request("PUT", "/a", {})
    assert [seen.body for seen in server.seen] == [DATA, DATA, b"", b""]
    assert server.connections == 1


def test_an_error_does_not_touch_the_buffer(server: CannedServer, pool: ConnectionPool) -> None:
    server.says("GET", "/a", Canned(412, b"<Code>PreconditionFailed</Code>"))
    buffer = bytearray(31)
    answer = pool.request("GET", "/a", {}, into=memoryview(buffer))
    assert (answer.status, answer.body) == (412, b"<Code>PreconditionFailed</Code>")
    assert buffer == bytes(31)


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_another_length_than_asked_for_is_no_answer(server: CannedServer, pool: ConnectionPool, size: int) -> None:
    server.says("GET", "/a", Canned(206, DATA))
    with pytest.raises(TransferFailed, match=f"{len(DATA)} bytes, {size} were asked for"):
        pool.request("GET", "/a?X-Amz-Signature=secret", {}, into=memoryview(bytearray(size)))


def test_a_chunked_answer_must_fit_too(server: CannedServer, pool: ConnectionPool) -> None:
    chunked = b"4\r\nabcd\r\n3\r\nefg\r\n0\r\n\r\n"
    server.says("GET", "/a", Canned(200, chunked, {"Content-Length": "x", "Transfer-Encoding": "chunked"}))
    buffer = bytearray(7)
    for _ in range(2):
        pool.request("GET", "/a", {}, into=memoryview(buffer))
    assert buffer == b"abcdefg"
    assert server.connections == 1
    for size in (6, 8):
        with pytest.raises(TransferFailed):
            pool.request("GET", "/a", {}, into=memoryview(bytearray(size)))


def test_a_cut_get_is_repeated_once(server: CannedServer, pool: ConnectionPool) -> None:
    cut = Canned(206, DATA, cut_after=1000)
    buffer = bytearray(len(DATA))
    server.says("GET", "/a", cut, Canned(206, DATA))
    pool.request("GET", "/a", {}, into=memoryview(buffer))
    assert buffer == DATA
    server.says("GET", "/a", cut)
    server.seen.clear()
    with pytest.raises(TransferFailed) as caught:
        pool.request("GET", "/a?X-Amz-Signature=secret", {}, into=memoryview(buffer))
    assert len(server.seen) == 2
    assert "secret" not in str(caught.value)


def test_a_cut_answer_to_a_small_question_is_no_answer(server: CannedServer, pool: ConnectionPool) -> None:
    server.says("PUT", "/a", Canned(200, b"0123456789", cut_after=5))
    with pytest.raises(TransferFailed, match="cut short"):
        pool.request("PUT", "/a", {}, repeatable=True)
    assert len(server.seen) == 1


def test_a_kept_connection_that_died_is_replaced(server: CannedServer, pool: ConnectionPool) -> None:
    server.says("PUT", "/a", Canned(200, close=True))
    for _ in range(20):
        # Whether the end has already arrived when the next request begins is a matter of luck; both ways must work.
        pool.request("PUT", "/a", {}, body=memoryview(DATA), repeatable=True)
    assert server.connections == len(server.seen) == 20


def test_an_answer_that_comes_before_the_body_has_gone_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!")

        thread = threading.Thread(target=refuse)
        thread.start()
        pool = ConnectionPool(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=10)
        answer = pool.request("PUT", "/a", {}, body=memoryview(bytes(64 << 20)))
        thread.join()
    assert (answer.status, answer.body) == (413, b"no!")


def test_a_body_may_come_piece_by_piece(server: CannedServer, pool: ConnectionPool) -> None:
    server.says("PUT", "/a", Canned(201, b"thanks"))
    request = pool.begin("PUT", "/a", {"Content-Length": str(len(DATA))})
    view = memoryview(DATA)
    assert request.send(view[:1000]) is None
    assert request.send(view[1000:]) is None
    assert request.end().status == 201
    assert server.seen[-1].body == DATA
    with pytest.raises(TransferFailed):
        request.send(view)


def test_an_answer_between_two_pieces_ends_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 507 Full\r\nContent-Length: 4\r\n\r\nfull")
                connection.recv(1 << 20)

        thread = threading.Thread(target=refuse)
        thread.start()
        pool = ConnectionPool(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=10)
        request = pool.begin("PUT", "/a", {"Content-Length": str(1 << 30)})
        piece, answer = memoryview(bytes(1 << 20)), None
        for _ in range(1000):
            answer = request.send(piece)
            if answer is not None:
                break
        thread.join()
        assert answer is not None
        assert (answer.status, answer.body) == (507, b"full")


def test_a_connection_that_is_cut_between_two_pieces_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def cut() -> None:
            connection, _ = listener.accept()
            connection.close()

        thread = threading.Thread(target=cut)
        thread.start()
        pool = ConnectionPool(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=10)
        request = pool.begin("PUT", "/a", {"Content-Length": str(1 << 30)})
        thread.join()
        with pytest.raises(TransferFailed, match=r"PUT /a on 127\.0\.0\.1"):
            request.send(memoryview(b"x"))


def test_an_answer_that_does_not_come_is_not_asked_for_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = ConnectionPool(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(TransferFailed, match="no answer in time"):
            pool.request("GET", "/a", {})
        listener.settimeout(0.2)
        listener.accept()[0].close()
        with pytest.raises(TimeoutError):
            listener.accept()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransferFailed, match="refused"):
        ConnectionPool(f"http://127.0.0.1:{port}").request("GET", "/a", {})


def test_what_the_body_raises_passes_through(server: CannedServer, pool: ConnectionPool) -> None:
    class Broken(Exception):
        pass

    def body() -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise Broken

    with pytest.raises(Broken):
        pool.request("PUT", "/a", {"Content-Length": "8"}, body=body(), repeatable=True)
    with pytest.raises(ValueError, match="4 bytes, 8 were announced"):
        pool.request("PUT", "/a", {"Content-Length": "8"}, body=[memoryview(b"half")])


def test_many_threads_share_a_pool(server: CannedServer, pool: ConnectionPool) -> None:
    for n in range(4):
        server.says("GET", f"/{n}", Canned(206, bytes([n]) * 1000))

    def read(n: int) -> bool:
        buffer = bytearray(1000)
        pool.request("GET", f"/{n % 4}", {}, into=memoryview(buffer))
        return bytes(buffer) == bytes([n % 4]) * 1000

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(200)))
    assert server.connections <= 8


def test_only_http_addresses() -> None:
    for address in ("ftp://host", "host:80", "http://"):
        with pytest.raises(ValueError, match="address"):
            ConnectionPool(address)
