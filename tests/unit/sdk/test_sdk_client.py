"""The client: requests, JSON lines, uploads, addresses, errors."""

from __future__ import annotations

import hashlib
import socket
import threading
from pathlib import Path

import pytest

from hostd import exception, model
from hostd.sdk import map_call, payload, websocket
from hostd.sdk.client import Client
from tests.fakes.fake_api import FakeAPI


def test_requests_reuse_their_connection(api: FakeAPI, client: Client) -> None:
    assert client.request("GET", "/healthz") == {"status": "ok"}
    first = client._idle[0].sock
    client.request("GET", "/healthz")
    assert client._idle[0].sock is first


def test_a_connection_that_the_server_closed_is_not_used_again(
    api: FakeAPI, client: Client
) -> None:
    client.request("GET", "/healthz")
    client._idle[0].sock.shutdown(socket.SHUT_RDWR)
    assert client.request("GET", "/healthz") == {"status": "ok"}


def test_problems_become_their_error(client: Client) -> None:
    with pytest.raises(exception.InvalidError, match="app ap-none is not known"):
        client.request("POST", "/api/v1/apps/ap-none/stop")


def test_answers_that_are_no_problem_documents_keep_their_text(client: Client) -> None:
    with pytest.raises(exception.Error, match="HTTP status 502: bad gateway"):
        client.request("GET", "/api/v1/broken")


def test_lines_come_one_by_one(api: FakeAPI, client: Client) -> None:
    api.build_events = [{"kind": "line", "text": "a"}, {"kind": "done", "image_id": "im-1"}]
    body = {"recipe": {"steps": []}}
    events = list(client.lines("POST", "/api/v1/builds", body))
    assert [event["kind"] for event in events] == ["line", "done"]


def test_leaving_the_lines_closes_the_connection(api: FakeAPI, client: Client) -> None:
    api.build_events = [{"kind": "line", "text": str(number)} for number in range(1_000)]
    lines = client.lines("POST", "/api/v1/builds", {"recipe": {"steps": []}})
    next(lines)
    lines.close()  # type: ignore[attr-defined]  # it is a generator
    assert client._idle == []


def test_blobs_go_up_and_come_back(api: FakeAPI, client: Client, tmp_path: Path) -> None:
    data = b"x" * 3_000_000
    (tmp_path / "f").write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert client.put_blob(digest, str(tmp_path / "f"))["size_bytes"] == len(data)
    assert client.get_blob(digest) == data


def test_urls_and_tokens_of_the_environment_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeAPI(tmp_path, token="secret") as api:
        monkeypatch.setenv("HOSTD_URL", f"http://127.0.0.1:{api.port}")
        monkeypatch.setenv("HOSTD_TOKEN", "secret")
        client = Client.from_env()
        assert client.request("GET", "/healthz") == {"status": "ok"}
        client.websocket("/api/v1/stream").close()
        client.close()
        monkeypatch.setenv("HOSTD_TOKEN", "wrong")
        with pytest.raises(exception.AuthError, match="the token is wrong"):
            Client.from_env().request("GET", "/healthz")
        with pytest.raises(exception.AuthError, match="the token is wrong"):
            Client.from_env().websocket("/api/v1/stream")


@pytest.mark.parametrize("url", ["https://host:1", "host:7900", "http://", "http://host/path"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(exception.InvalidError, match="expected http://host:port"):
        Client(url=url)


def test_a_host_that_refuses_or_is_silent_gives_a_typed_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Client(url=f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(exception.TimeoutError, match=r"did not answer GET /healthz in 0\.05 s"):
            client.request("GET", "/healthz", timeout=0.05)
    with pytest.raises(exception.ConnectionError, match="cannot be reached"):
        client.request("GET", "/healthz")


def test_an_answer_that_breaks_off_is_a_connection_error(tmp_path: Path) -> None:
    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        with pytest.raises(exception.ConnectionError):
            Client(url=f"http://127.0.0.1:{server.getsockname()[1]}").request("GET", "/")
        thread.join()


def test_limits_agree_with_the_daemons() -> None:
    assert payload.PAYLOAD_BYTES_MAX == model.PAYLOAD_BYTES_MAX
    assert map_call.OUTSTANDING_MAX == model.INPUTS_OUTSTANDING_MAX
    assert websocket.MESSAGE_BYTES_MAX == model.PAYLOAD_BYTES_MAX + 2**20
