"""The API's two doors: the socket needs nothing, the port needs the token; refusals are problems."""

import hashlib
import http.client
import json
import socket
import stat

import pytest

from tests.daemon_process import DaemonProcess, shared_data_dir


@pytest.fixture(scope="module")
def listening():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with DaemonProcess(shared_data_dir(), **{"api.listen": f"127.0.0.1:{port}"}) as daemon:
        yield daemon, port


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()
    finally:
        connection.close()


def authorized(daemon):
    token = (daemon.data_dir / "api-token").read_text().strip()
    return {"Authorization": f"Bearer {token}"}


def test_the_port_refuses_who_has_no_token(listening):
    _, port = listening
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        status, kind, body = ask(port, "GET", "/api/v1/status", **headers)
        assert (status, kind) == (401, "application/problem+json")
        assert json.loads(body)["code"] == "unauthenticated"


def test_the_port_admits_who_has_the_token(listening):
    daemon, port = listening
    status, _, body = ask(port, "GET", "/api/v1/status", **authorized(daemon))
    assert status == 200
    assert json.loads(body)["run_dir"] == str(daemon.run_dir)


def test_token_and_socket_are_for_their_owner_only(listening):
    daemon, _ = listening
    assert stat.S_IMODE((daemon.data_dir / "api-token").stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.stat().st_mode) in (0o600, 0o660)


def test_health_needs_no_token(listening):
    _, port = listening
    assert ask(port, "GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/nothing", None, 404, "not_found"),
        ("DELETE", "/api/v1/status", None, 405, "invalid"),
        ("POST", "/api/v1/apps", b"{", 422, "invalid"),
        ("POST", "/api/v1/apps", b'{"name": "a", "functions": [], "speed": 1}', 422, "invalid"),
        ("POST", "/api/v1/apps", b'{"name": "../a", "functions": []}', 422, "invalid"),
        ("POST", "/api/v1/apps", b'{"name": "a", "functions": [{"name": "f", "image_id": "im-none", "cpu": -1}]}', 422, "invalid"),
        ("POST", "/api/v1/apps", b'{"name": "a", "functions": [{"name": "f", "image_id": "im-none"}]}', 404, "not_found"),
        ("POST", "/api/v1/builds", b'{"recipe": {"steps": []}}', 422, "invalid"),
        ("GET", "/api/v1/blobs/blake3:..%2f..%2fpasswd", None, 422, "invalid"),
        ("GET", "/api/v1/blobs/blake3:" + "0" * 64, None, 404, "blob_missing"),
        ("PUT", "/api/v1/blobs/sha256:" + "0" * 64, b"other bytes", 500, "blob_corrupt"),
        ("GET", "/api/v1/calls?limit=-1", None, 422, "invalid"),
        ("GET", "/api/v1/calls/fc-1", None, 404, "not_found"),
        ("GET", "/api/v1/logs/ap-00000000000000000000000000", None, 404, "not_found"),
    ],
)  # fmt: skip
def test_wrong_requests_end_in_a_problem_with_its_code(listening, method, path, body, status, code):
    daemon, port = listening
    answer, kind, text = ask(port, method, path, body, **authorized(daemon))
    assert (answer, kind) == (status, "application/problem+json"), text
    assert json.loads(text)["code"] == code


def test_an_upload_is_had_again_by_both_names(listening):
    daemon, _ = listening
    content = b"some content that no image has " * 100
    name = f"sha256:{hashlib.sha256(content).hexdigest()}"
    stored = daemon.client().put_blob(name, content)
    assert daemon.client().get_blob(stored["digest"]) == content
    missing = daemon.client().request("POST", "/api/v1/blobs/missing", {"digests": [name]})
    assert missing == {"missing": []}


def test_an_id_may_be_shortened(listening):
    daemon, _ = listening
    images = daemon.client().request("GET", "/api/v1/images")["items"]
    if not images:
        daemon.hostctl("image", "list")
    shortened = [image["id"][:12] for image in images[:1]]
    assert [daemon.client().request("GET", f"/api/v1/images/{ref}")["id"] for ref in shortened] == [
        image["id"] for image in images[:1]
    ]
