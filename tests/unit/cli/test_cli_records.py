"""Commands on the REST API, with replies made of the API's own records."""

import json
import time

import msgspec
import pytest

from hostd import __version__
from hostd.cli.group import run_command_line
from hostd.errors import ConflictError
from hostd.model import (
    AppInfo,
    CallInfo,
    ContainerInfo,
    DoctorCheck,
    Explanation,
    FunctionInfo,
    HostStatus,
    ImageConfig,
    ImageInfo,
    LogLine,
)
from tests.fakes.fake_records_api import FakeRecordsAPI

NOW_US = time.time_ns() // 1000
FUNCTION = FunctionInfo(
    id="fu-1", name="fit", app_id="ap-2", image_id="im-1", containers=3, inputs_queued=7
)


def app(number, state, **more):
    return AppInfo(
        id=f"ap-{number}",
        name="sweep",
        state=state,
        created_at_us=NOW_US,
        functions=[FUNCTION],
        **more,
    )


IMAGE = ImageInfo(
    id="im-1", names=["mine", "other"], entries=16_171, size_bytes=465 * 2**20,
    created_at_us=NOW_US, history=["FROM x", "RUN y"],
    config=ImageConfig(env={"A": "1"}, cmd=("python3",), workdir="/srv"),
)  # fmt: skip
CONTAINER = ContainerInfo(
    id="ct-1", function_id="fu-1", function="fit", app_id="ap-2", app="sweep", image_id="im-1",
    state="busy", started_at_us=NOW_US, inputs_done=12, memory_bytes=200 * 2**20, call_id="fc-1",
)  # fmt: skip
CALL = CallInfo(
    id="fc-1", app_id="ap-2", function_id="fu-1", function="fit", kind="map", state="failed",
    created_at_us=NOW_US - 2_000_000, finished_at_us=NOW_US, inputs_total=8, inputs_done=8,
    inputs_failed=1, phases_us={"queue": 10, "run": 90}, start="cold", why="one input failed",
    error={"code": "out_of_memory", "detail": "the container reached 512 MiB"},
)  # fmt: skip
EXPLANATION = Explanation(
    id="fc-1", sentence="fc-1 sweep.fit took 2 s: import was slow", lines=["detail \x1b[2J"],
    phases_us={"queue": 1_000, "import": 1_500_000, "run": 499_000}, wall_us=2_000_000,
)  # fmt: skip
STATUS = HostStatus(
    version=__version__, protocol_version=1, host_id="ho-1", started_at_us=NOW_US, data_dir="/data",
    run_dir="/run/hostd", fs_mode="erofs", oci_runtime="runc", containers=4, cpu_count=2,
    memory_bytes=24 * 2**30, disk_free_bytes=100 * 2**30,
)  # fmt: skip
CHECKS = [
    DoctorCheck(id="kernel", status="ok", found="6.18"),
    DoctorCheck(id="swap", status="warn", found="none", why="memory is tight", fix="add some"),
]
LINES = [
    LogLine(at_us=NOW_US, container_id="ct-1", stream="stdout", text="one"),
    LogLine(at_us=NOW_US, container_id="ct-1", stream="stderr", text="two"),
]
REPLIES = {
    "GET /api/v1/images": [IMAGE],
    "GET /api/v1/images/mine": IMAGE,
    "DELETE /api/v1/images/mine": IMAGE,
    "DELETE /api/v1/images/used": ConflictError("image used is used by app sweep", hint="stop it"),
    "GET /api/v1/containers": [CONTAINER],
    "GET /api/v1/containers?all=1": [CONTAINER, CONTAINER],
    "POST /api/v1/containers/ct-1/stop": CONTAINER,
    "GET /api/v1/apps": [app(3, "stopped"), app(2, "running"), app(1, "running")],
    "GET /api/v1/apps/ap-2": app(2, "running", reason="because"),
    "POST /api/v1/apps/ap-2/stop": app(2, "stopped"),
    "GET /api/v1/calls?limit=50": [CALL],
    "GET /api/v1/calls?limit=1": [CALL],
    "GET /api/v1/calls/fc-1": CALL,
    "POST /api/v1/calls/fc-1/cancel": CALL,
    "GET /api/v1/explain/fc-1": EXPLANATION,
    "GET /api/v1/status": STATUS,
    "GET /api/v1/doctor": CHECKS,
    "GET /api/v1/logs/ap-2?tail=100&follow=0": b"".join(map(msgspec.json.encode, LINES)),
    "GET /api/v1/logs/fc-1?tail=5&follow=1": b"\n".join(map(msgspec.json.encode, LINES)),
}


@pytest.fixture(scope="module")
def api():
    replies = {**REPLIES, "GET /api/v1/logs/ap-2?tail=100&follow=0": _lines()}
    with FakeRecordsAPI(replies, token="hd_secret") as server:
        yield server


def _lines():
    return b"".join(msgspec.json.encode(line) + b"\n" for line in LINES)


@pytest.fixture
def hostctl(api, monkeypatch, capsys):
    monkeypatch.setenv("HOSTD_TOKEN", "hd_secret")
    monkeypatch.delenv("HOSTD_URL", raising=False)

    def run(*arguments):
        # --url sets the variable that the user's own script reads as well.
        monkeypatch.setenv("HOSTD_URL", "")
        status = run_command_line([*arguments, "--url", api.url])
        out, err = capsys.readouterr()
        return status, out, err

    return run


TABLES = {
    "image list": [["IMAGE", "NAMES", "FILES"], ["im-1", "mine, other", "16,171", "465 MiB"]],
    "ps": [["CONTAINER", "STATE"], ["ct-1", "sweep", "fit", "busy", "12", "200 MiB", "fc-1"]],
    "app list": [["APP", "REASON"], ["ap-2", "sweep", "running", "1", "3"]],
    "app show sweep": [["id", "ap-2"], ["reason", "because"], ["7 inputs queued"]],
    "app stop sweep": [["stopped", "ap-2 sweep"]],
    "calls list": [["CALL", "TOOK"], ["fc-1", "map", "failed", "2 s", "cold", "8/8 (1 failed)"]],
    "calls show fc-1": [["why", "one input failed"], ["error", "the container reached 512 MiB"]],
    "calls cancel fc-1": [["cancelled", "fc-1"]],
    "image show mine": [["names", "mine, other"], ["cmd", "python3"], ["env", "A=1"], ["RUN y"]],
    "image delete mine": [["deleted", "im-1"]],
    "stop ct-1 fc-1 sweep": [["stopped", "ct-1"], ["stopped", "fc-1"], ["stopped", "ap-2"]],
    "status": [
        ["host", "ho-1"],
        ["24 GiB memory"],
        ["erofs way, run by runc"],
        ["100 GiB at /data"],
    ],
    "doctor": [["ok", "daemon"], ["kernel", "6.18"], ["why: memory is tight"], ["fix: add some"]],
    "logs ap-2": [["one"], ["two"]],
}


@pytest.mark.parametrize("command", TABLES)
def test_tables_have_the_facts(hostctl, command):
    status, out, err = hostctl(*command.split())
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for words in TABLES[command]:
        assert any(all(word in line for word in words) for line in lines), (words, out)


@pytest.mark.parametrize("command", [c for c in TABLES if not c.startswith(("stop", "logs"))])
def test_json_is_one_document_with_the_records_fields(hostctl, command):
    status, out, _ = hostctl(*command.split(), "--json")
    document = json.loads(out)
    assert status == 0
    assert "items" in document or "id" in document


@pytest.mark.parametrize(
    ("command", "ids"),
    [("image list", "im-1\n"), ("ps -a", "ct-1\nct-1\n"), ("calls list --limit 1", "fc-1\n"),
     ("app ls", "ap-3\nap-2\nap-1\n"), ("stop ap-2", "ap-2\n"), ("explain fc-1", "fc-1\n")],
)  # fmt: skip
def test_ids_alone_for_pipes(hostctl, command, ids):
    assert hostctl(*command.split(), "-o", "id") == (0, ids, "")


def test_explain_prints_the_sentence_and_then_the_waterfall(hostctl):
    status, out, _ = hostctl("explain", "fc-1")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == EXPLANATION.sentence
    assert lines[1] == "  detail \\x1b[2J"
    assert lines[2] == "  the first of 8 inputs:"
    assert [line.split()[0] for line in lines[3:]] == ["queue", "import", "run", "wall"]
    assert hostctl("why", "fc-1")[1] == out


def test_followed_lines_can_have_times_or_be_json(hostctl):
    _, out, _ = hostctl("logs", "-f", "--tail", "5", "-t", "fc-1")
    assert [line.split()[-1] for line in out.splitlines()] == ["one", "two"]
    assert all(line.startswith("2") for line in out.splitlines())
    _, out, _ = hostctl("logs", "-f", "--tail", "5", "fc-1", "-o", "jsonl")
    assert [json.loads(line)["stream"] for line in out.splitlines()] == ["stdout", "stderr"]


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("image show nothing", 3, "error: GET /api/v1/images/nothing is not known\nhint: look\n"),
        ("image delete used", 5, "error: image used is used by app sweep\nhint: stop it\n"),
        (
            "app show nothing",
            3,
            "error: app nothing is not known\nhint: hostctl app list",
        ),
        ("image show ../apps", 3, "error: GET /api/v1/images/..%2Fapps is not known"),
        ("logs ct-0", 3, "error: GET /api/v1/logs/ct-0?tail=100&follow=0 is not known"),
    ],
)
def test_refusals_of_the_host_become_messages_and_statuses(hostctl, command, status, said):
    code, out, err = hostctl(*command.split())
    assert (code, out) == (status, "")
    assert err.startswith(said)


def test_quiet_leaves_the_hint_out(hostctl):
    assert hostctl("-q", "image", "delete", "used")[2] == "error: image used is used by app sweep\n"


def test_wrong_token_is_status_4(hostctl, monkeypatch):
    monkeypatch.setenv("HOSTD_TOKEN", "wrong")
    status, _, err = hostctl("ps")
    assert (status, err) == (4, "error: the token is wrong\nhint: set HOSTD_TOKEN\n")


def test_doctor_without_a_daemon_fails_with_the_way_out(monkeypatch, capsys):
    monkeypatch.setenv("HOSTD_SOCKET", "/nonexistent/hostd.sock")
    monkeypatch.setenv("HOSTD_URL", "")
    monkeypatch.setattr("hostd.cli.doctor._local_checks", list)
    assert run_command_line(["doctor", "--json"]) == 1
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(item["id"], item["status"]) for item in items] == [
        ("client", "ok"),
        ("daemon", "fail"),
    ]
    assert items[1]["fix"]


def test_another_version_of_the_daemon_is_a_warning(hostctl, api, monkeypatch):
    older = msgspec.structs.replace(STATUS, version="0.0.1")
    monkeypatch.setitem(api.replies, "GET /api/v1/status", older)
    status, out, _ = hostctl("doctor")
    assert status == 0
    assert "warn  daemon" in out
    assert "fix: install the same version on both" in out
