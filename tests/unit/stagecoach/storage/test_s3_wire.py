"""The wire against a server that is written out byte by byte: what is sent, what is taken, what is refused."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach.storage.s3_errors import Trouble
from stagecoach.storage.s3_signature import Secrets, Signer
from stagecoach.storage.s3_wire import S3Wire, Target, WireAnswer, WireFailure, crc32_header


@contextmanager
def server(*answers: bytes | None) -> Iterator[tuple[S3Wire, list[bytes]]]:
    """A server that gives these answers, one a request; None closes the connection. Also what it received."""
    received: list[bytes] = []
    script = list(answers)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while script:
                stream = listener.accept()[0]
                with stream:
                    while script:
                        request = receive(stream)
                        if not request:
                            break
                        received.append(request)
                        answer = script.pop(0)
                        if answer is None:
                            break
                        stream.sendall(answer)
                        if b"connection: close" in answer.lower():
                            break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        target = Target(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/bucket", read_timeout_seconds=0.5)
        wire = S3Wire(target, Signer("r", lambda: Secrets("AK", "SK", None)))
        yield wire, received
        wire.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(2)


def receive(stream: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = stream.recv(65536)
        if not more:
            return b""
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    size = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < size:
        body += stream.recv(65536)
    return head + b"\r\n\r\n" + body


def ok(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body])


def test_a_request_is_what_the_standard_wants() -> None:
    with server(ok(b"")) as (wire, received):
        wire.request(
            "PUT", "a b/ä", query={"uploadId": "x/y", "partNumber": "1"}, headers={"X-Amz-Meta-N": "1"}, body=b"hi"
        )
    head, body = received[0].split(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"PUT /bucket/a%20b/%C3%A4?partNumber=1&uploadId=x%2Fy HTTP/1.1"
    assert body == b"hi"
    assert b"content-length: 2" in lines
    assert b"x-amz-meta-n: 1" in lines
    # sha256 of "hi"
    assert b"x-amz-content-sha256: 8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4" in lines
    assert sum(line.startswith(b"authorization: AWS4-HMAC-SHA256 Credential=AK/") for line in lines) == 1


def test_a_connection_is_used_again() -> None:
    with server(ok(b"one"), ok(b"two")) as (wire, _):
        assert wire.request("GET", "a").body == b"one"
        assert wire.request("GET", "b").body == b"two"
        assert len(wire._idle) == 1


def test_a_large_body_is_handed_on_in_pieces() -> None:
    body, taken = bytes(range(256)) * 3000, bytearray()
    with server(ok(body, b'ETag: "x"')) as (wire, _):
        answer = wire.request("GET", "a", on_body=taken.extend)
    assert (bytes(taken), answer.body, answer.headers["etag"]) == (body, b"", '"x"')


def test_what_the_taker_of_a_body_raises_comes_through() -> None:
    def refuse(_: memoryview) -> None:
        raise ConfigError("no")

    with server(ok(b"12345")) as (wire, _):
        with pytest.raises(ConfigError, match="no"):
            wire.request("GET", "a", on_body=refuse)
        assert wire._idle == []


def test_a_chunked_body_is_joined() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    with server(chunked, ok(b"next")) as (wire, _):
        assert wire.request("GET", "a").body == b"abcde"
        assert wire.request("GET", "a").body == b"next"


def test_interim_answers_are_passed_over() -> None:
    with server(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"x")) as (wire, _):
        assert wire.request("GET", "a").body == b"x"


def test_an_error_keeps_code_message_and_connection() -> None:
    body = b"<Error><Code>SlowDown</Code><Message>a &lt; b</Message></Error>"
    refusal = b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with server(refusal, ok(b"x")) as (wire, _):
        with pytest.raises(WireAnswer) as caught:
            wire.request("GET", "a", on_body=lambda piece: pytest.fail("an error text is no body"))
        assert caught.value.response["Error"] == {"Code": "SlowDown", "Message": "a < b"}
        assert wire.request("GET", "a").body == b"x"


def test_an_endless_error_text_is_not_read() -> None:
    with server(b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n") as (wire, _), pytest.raises(WireAnswer):
        wire.request("GET", "a")


def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    with server(ok(b"one", b"Connection: keep-alive"), None, ok(b"two")) as (wire, received):
        assert wire.request("GET", "a").body == b"one"
        assert wire.request("GET", "b").body == b"two"
    assert len(received) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n12345", "broke off after 5 of 10 bytes"),
        (b"SSH-2.0\r\n\r\n", "expected an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "expected a header"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n", "invalid literal"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "negative"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "int"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 300 + b"\r\n", "at most 200 headers"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nab", "within a chunk"),
    ],
)
def test_half_an_answer_is_a_failure_that_may_pass(answer: bytes | None, message: str) -> None:
    with server(answer) as (wire, _):
        with pytest.raises(WireFailure, match=message) as caught:
            wire.request("GET", "a")
        assert caught.value.trouble is Trouble.TRANSIENT
        assert wire._idle == []


def test_a_body_that_stops_coming_is_a_failure_that_may_pass() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", ok(b"never asked for")) as (wire, _):
        with pytest.raises(WireFailure, match="timed out") as caught:
            wire.request("GET", "a")
        assert caught.value.trouble is Trouble.TRANSIENT


def test_nobody_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    wire = S3Wire(Target(base_url=f"http://127.0.0.1:{port}/b"), Signer("r", lambda: Secrets("AK", "SK", None)))
    with pytest.raises(WireFailure, match="Connection refused") as caught:
        wire.request("GET", "a")
    assert caught.value.trouble is Trouble.UNREACHABLE


def test_the_reason_is_heard_of_a_server_that_refuses_a_body_half_way() -> None:
    """A server may answer 403 and close while a large body still comes in."""
    refusal = b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def serve(listener: socket.socket) -> None:
        stream = listener.accept()[0]
        stream.recv(1000)
        stream.sendall(refusal)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(65536):
            pass
        stream.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/b"
        wire = S3Wire(Target(base_url=base_url), Signer("r", lambda: Secrets("AK", "SK", None)))
        with pytest.raises(WireAnswer, match="403"):
            wire.request("PUT", "a", body=b"x" * 10_000_000)
        wire.close()
        thread.join()


def test_a_proxy_gets_the_whole_address() -> None:
    with server(ok(b"through")) as (wire, received):
        target = Target(
            base_url="http://store.example/bucket", proxy_url=f"{wire.target.base_url[:-7].replace('//', '//u:p@')}"
        )
        proxied = S3Wire(target, Signer("r", lambda: Secrets("AK", "SK", None)))
        assert proxied.request("GET", "a").body == b"through"
        proxied.close()
    assert received[0].startswith(b"GET http://store.example/bucket/a HTTP/1.1\r\nhost: store.example\r\n")
    assert b"proxy-authorization: Basic dTpw\r\n" in received[0]


def test_crc32_is_written_as_s3_writes_it() -> None:
    """The CRC-32 of "123456789" is CBF43926, the check value of the standard."""
    assert crc32_header(b"123456789") == "y/Q5Jg=="


def test_a_certificate_that_nobody_vouches_for_is_a_configuration_error(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as stream:
                if receive(stream):
                    stream.sendall(ok(b"secret"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/b"
        signer = Signer("r", lambda: Secrets("AK", "SK", None))
        with pytest.raises(WireFailure, match="certificate: self-signed certificate") as caught:
            S3Wire(Target(base_url=url), signer).request("GET", "a")
        assert caught.value.trouble is Trouble.CONFIGURATION
        trusting = S3Wire(Target(base_url=url, ca_bundle=str(certificate)), signer)
        assert trusting.request("GET", "a").body == b"secret"
        trusting.close()
        thread.join(2)


def test_tls_goes_through_a_tunnel_of_the_proxy(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in (b"HTTP/1.1 407 Login first\r\n\r\n", b"HTTP/1.1 200 Here you are\r\nX: y\r\n\r\n"):
            stream = listener.accept()[0]
            asked.append(receive(stream))
            stream.sendall(answer)
            if b"200" in answer:
                with context.wrap_socket(stream, server_side=True) as inner:
                    asked.append(receive(inner))
                    inner.sendall(ok(b"through"))
            stream.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        target = Target(
            base_url="https://localhost/bucket",
            ca_bundle=str(certificate),
            proxy_url=f"http://u:p@127.0.0.1:{listener.getsockname()[1]}",
        )
        wire = S3Wire(target, Signer("r", lambda: Secrets("AK", "SK", None)))
        with pytest.raises(WireFailure, match=r"the proxy refuses a connection to localhost:443: .* 407"):
            wire.request("GET", "a")
        assert wire.request("GET", "a").body == b"through"
        wire.close()
        thread.join(2)
    assert (
        asked[1] == b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\nproxy-authorization: Basic dTpw\r\n\r\n"
    )
    assert asked[2].startswith(
        b"GET /bucket/a HTTP/1.1\r\nhost: localhost\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\n"
    )


def self_signed(folder: Path) -> Path:
    """A certificate for localhost and its key in one file; `openssl` makes it, as Python's standard library cannot."""
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        pytest.fail("needs the program openssl")
    path, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path
