"""Records that cross a process border: the HTTP API, the client stream, the build and image files.

Every record is an immutable msgspec struct: decoding checks types and refuses unknown fields of
requests. The OpenAPI document is generated from these same classes (``hostd/api/openapi.py``).
Records only grow, with defaults; a rename is a new field. Units are the last word of a name.

``PROTOCOL_VERSION`` history (client stream, REST and runner):
    1  first version
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from hostd.ids import AppId, Digest, FunctionId, ImageId

PROTOCOL_VERSION = 1

# Limits that several sides must agree on.
INPUTS_OUTSTANDING_MAX = 1_000
"""Inputs of one call that may be sent and not yet answered (Modal's figure)."""
PAYLOAD_BYTES_MAX = 256 * 2**20
"""One argument or result in pickled form: what fits comfortably in every process on its way."""

DigestText = Annotated[str, Meta(pattern=r"^(blake3|sha256):[0-9a-f]{64}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\0]*$", max_length=4096)]
EnvMap = dict[Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that comes from outside: unknown fields are errors."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A record that goes out: clients must ignore fields they do not know."""


# --- files that a client uploads by content -------------------------------------------------------


class SourceFile(Record, frozen=True, kw_only=True):
    """One file, directory or symbolic link of a client, named by its content."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    """Where it goes: absolute in a container, or relative to a build context."""
    kind: Literal["file", "dir", "symlink"] = "file"
    digest: DigestText | None = None
    """``sha256:…`` as the client computed it (laptops have no BLAKE3); for files only."""
    size_bytes: Annotated[int, Meta(ge=0)] = 0
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0o644
    target: str | None = None
    """For symbolic links only."""


class MissingRequest(Record, frozen=True, kw_only=True):
    """Which of these does the store lack?"""

    digests: Annotated[list[DigestText], Meta(max_length=100_000)]


class MissingReply(Reply, frozen=True, kw_only=True):
    """The digests that must be uploaded with PUT /api/v1/blobs/{digest}."""

    missing: list[str]


class BlobReply(Reply, frozen=True, kw_only=True):
    """A blob that is stored now."""

    digest: str
    size_bytes: int


# --- images ---------------------------------------------------------------------------------------


class From(Record, frozen=True, kw_only=True, tag_field="op", tag="from"):
    """Start from ``debian:bookworm-slim``, ``debian_slim``, ``scratch``, an image's name or id."""

    image: Annotated[str, Meta(min_length=1, max_length=512)]
    python_version: str | None = None
    """For ``debian_slim``: the minor version wanted, or None for the distribution's own."""


class Run(Record, frozen=True, kw_only=True, tag_field="op", tag="run"):
    """Run a command in a container on what was built so far; keep what it changed."""

    command: str | None = None
    """Shell form: given to the shell of the image config. Exactly one of command and args."""
    args: list[str] | None = None
    """Exec form."""
    force: bool = False
    """Do not use the cache for this step and those after it."""
    heredoc: str | None = None
    """Standard input of the command (Dockerfile heredocs)."""


class Copy(Record, frozen=True, kw_only=True, tag_field="op", tag="copy"):
    """Put files into the image; their paths are absolute and final already."""

    files: list[SourceFile]
    owner: str | None = None
    """``user[:group]``, numbers or names of the image; None: 0:0."""


class Env(Record, frozen=True, kw_only=True, tag_field="op", tag="env"):
    """Set environment variables for later steps and for containers."""

    variables: EnvMap


class Workdir(Record, frozen=True, kw_only=True, tag_field="op", tag="workdir"):
    """Change the working directory; made when absent. Relative paths follow the last one."""

    path: str


class User(Record, frozen=True, kw_only=True, tag_field="op", tag="user"):
    """``user[:group]`` of later steps and of containers."""

    user: str


class Entrypoint(Record, frozen=True, kw_only=True, tag_field="op", tag="entrypoint"):
    """The entrypoint, in exec form; an empty list clears it."""

    args: list[str]


class Cmd(Record, frozen=True, kw_only=True, tag_field="op", tag="cmd"):
    """The default command, in exec form."""

    args: list[str]


class Label(Record, frozen=True, kw_only=True, tag_field="op", tag="label"):
    """Set labels."""

    labels: dict[str, str]


class Expose(Record, frozen=True, kw_only=True, tag_field="op", tag="expose"):
    """Note ports; nothing is opened."""

    ports: list[str]


class Shell(Record, frozen=True, kw_only=True, tag_field="op", tag="shell"):
    """The shell of later ``run`` steps in shell form."""

    args: list[str]


class Dockerfile(Record, frozen=True, kw_only=True, tag_field="op", tag="dockerfile"):
    """All steps of a Dockerfile. As the first step it names its own base."""

    text: Annotated[str, Meta(max_length=1 << 20)]
    context: list[SourceFile] = []
    """Every file of the context, with paths relative to it."""
    build_args: dict[str, str] = {}


Step = (
    From
    | Run
    | Copy
    | Env
    | Workdir
    | User
    | Entrypoint
    | Cmd
    | Label
    | Expose
    | Shell
    | Dockerfile
)


class Recipe(Record, frozen=True, kw_only=True):
    """How to build an image. The first step is From or Dockerfile."""

    steps: Annotated[list[Step], Meta(min_length=1, max_length=500)]


class BuildRequest(Record, frozen=True, kw_only=True):
    """Build an image; the reply is a stream of BuildEvent lines (application/x-ndjson)."""

    recipe: Recipe
    name: Name | None = None
    """Give the finished image this name."""
    force: bool = False
    """Ignore the cache for every step after the base."""


class BuildEvent(Reply, frozen=True, kw_only=True):
    """One line of a build's log.

    kinds: ``step`` (a step begins: text is the instruction), ``cached`` (it was cached), ``line``
    (output of the step), ``step_done``, ``done`` (image_id is set), ``failed`` (problem is set).
    """

    kind: Literal["step", "cached", "line", "step_done", "done", "failed"]
    seq: int
    at_us: int
    step: int = 0
    steps: int = 0
    text: str = ""
    stream: Literal["stdout", "stderr"] = "stdout"
    duration_us: int = 0
    image_id: str | None = None
    problem: dict[str, object] | None = None


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a container on an image starts with (a subset of the OCI image configuration)."""

    env: dict[str, str] = {}
    workdir: str = "/"
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    labels: dict[str, str] = {}
    exposed: tuple[str, ...] = ()


class ImageInfo(Reply, frozen=True, kw_only=True):
    """An image as the API shows it."""

    id: str
    names: list[str]
    entries: int
    size_bytes: int
    """Sum of the sizes of its regular files."""
    created_at_us: int
    config: ImageConfig
    history: list[str]


# --- apps and functions ---------------------------------------------------------------------------


class Retries(Record, frozen=True, kw_only=True):
    """When and how often a failed input runs again (Modal's rules)."""

    max_retries: Annotated[int, Meta(ge=0, le=100)] = 0
    backoff_coefficient: Annotated[float, Meta(ge=1, le=10)] = 1.0
    initial_delay_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    max_delay_s: Annotated[float, Meta(ge=1, le=60)] = 60.0


class FunctionSpec(Record, frozen=True, kw_only=True):
    """Everything the cluster must know to run a function."""

    name: Name
    image_id: str
    module: str = ""
    """Importable name of the user's module in the container; empty for serialized functions."""
    qualname: str = ""
    source: list[SourceFile] = []
    """Files that lie over the image: the user's code and ``add_local_*`` without copy."""
    serialized: DigestText | None = None
    """Blob with the cloudpickled function, for notebooks and closures."""
    python_version: str | None = None
    """``major.minor`` that a serialized function needs."""
    is_generator: bool = False
    cpu: Annotated[float, Meta(gt=0, le=1024)] | None = None
    """Cores asked for; scheduling only."""
    cpu_limit: Annotated[float, Meta(gt=0, le=1024)] | None = None
    memory_mib: Annotated[int, Meta(ge=16, le=1 << 24)] | None = None
    memory_limit_mib: Annotated[int, Meta(ge=16, le=1 << 24)] | None = None
    """At this limit the kernel kills; None: the request, or the host's default."""
    pids_max: Annotated[int, Meta(ge=8, le=1 << 20)] = 1024
    timeout_s: Annotated[float, Meta(ge=0.01, le=86_400)] = 300.0
    """Of one input, from its hand-over to the runner until its result."""
    startup_timeout_s: Annotated[float, Meta(ge=0.01, le=86_400)] | None = None
    """From the decision to start a container until the function is imported; None: timeout_s."""
    retries: Retries = Retries()
    min_containers: Annotated[int, Meta(ge=0, le=10_000)] = 0
    max_containers: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    buffer_containers: Annotated[int, Meta(ge=0, le=10_000)] = 0
    scaledown_window_s: Annotated[float, Meta(ge=2, le=1_200)] = 60.0
    single_use: bool = False
    block_network: bool = False
    env: EnvMap = {}


class AppRequest(Record, frozen=True, kw_only=True):
    """Create an ephemeral app: it lives as long as the stream that attached to it."""

    name: Name
    functions: Annotated[list[FunctionSpec], Meta(max_length=1_000)]


class FunctionInfo(Reply, frozen=True, kw_only=True):
    """A function as the API shows it."""

    id: str
    name: str
    app_id: str
    image_id: str
    containers: int = 0
    inputs_queued: int = 0
    inputs_running: int = 0


class AppInfo(Reply, frozen=True, kw_only=True):
    """An app as the API shows it."""

    id: str
    name: str
    state: Literal["running", "stopped"]
    created_at_us: int
    functions: list[FunctionInfo]
    reason: str = ""
    """Why it stopped."""


class ContainerInfo(Reply, frozen=True, kw_only=True):
    """A container as ``hostctl ps`` shows it."""

    id: str
    function_id: str
    function: str
    app_id: str
    app: str
    image_id: str
    state: Literal[
        "pulling", "creating", "starting", "warming", "idle", "busy", "stopping", "exited"
    ]
    started_at_us: int
    inputs_done: int
    pid: int | None = None
    memory_bytes: int | None = None
    cpu_s: float | None = None
    call_id: str | None = None
    """What it works on now."""
    reason: str = ""


PHASES = (
    "queue",
    "place",
    "cloud_launch",
    "image_index",
    "mount",
    "overlay",
    "runc_create",
    "boot",
    "connect",
    "fetch_code",
    "import",
    "enter",
    "input_load",
    "run",
    "output_store",
    "deliver",
)
"""The spans of a call's waterfall, in order; absent ones are 0; their sum is the wall time."""


class CallInfo(Reply, frozen=True, kw_only=True):
    """A call as the API shows it; times in microseconds."""

    id: str
    app_id: str
    function_id: str
    function: str
    kind: Literal["unary", "map", "gen"]
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at_us: int
    finished_at_us: int | None = None
    inputs_total: int = 0
    inputs_done: int = 0
    inputs_failed: int = 0
    phases_us: dict[str, int] = {}
    """Of the call's first input: phase to duration."""
    start: Literal["cold", "warm"] | None = None
    container_id: str | None = None
    error: dict[str, object] | None = None
    why: str = ""
    """One sentence with numbers: why it waits, was slow, or failed."""


class LogLine(Reply, frozen=True, kw_only=True):
    """One line that a container wrote."""

    at_us: int
    container_id: str
    stream: Literal["stdout", "stderr", "system"]
    text: str
    call_id: str | None = None
    input: int | None = None


class ExecRequest(Record, frozen=True, kw_only=True):
    """Run a command in a container."""

    args: Annotated[list[str], Meta(min_length=1)]
    env: EnvMap = {}
    workdir: str | None = None
    tty: bool = False
    rows: int = 24
    columns: int = 80


class ShellRequest(Record, frozen=True, kw_only=True):
    """Open a container on an image for a person."""

    image_id: str
    args: list[str] = msgspec.field(default_factory=lambda: ["/bin/sh"])
    env: EnvMap = {}
    source: list[SourceFile] = []
    tty: bool = True
    rows: int = 24
    columns: int = 80


class Explanation(Reply, frozen=True, kw_only=True):
    """Why something waits, is slow or failed: one sentence, then lines of detail."""

    id: str
    sentence: str
    lines: list[str] = []
    phases_us: dict[str, int] = {}
    wall_us: int = 0


class HostStatus(Reply, frozen=True, kw_only=True):
    """This host, in one record."""

    version: str
    protocol_version: int
    host_id: str
    started_at_us: int
    data_dir: str
    run_dir: str
    fs_mode: str
    oci_runtime: str
    containers: int
    cpu_count: int
    memory_bytes: int
    disk_free_bytes: int
    statistics: dict[str, object] = {}


class DoctorCheck(Reply, frozen=True, kw_only=True):
    """One finding of ``doctor``."""

    id: str
    status: Literal["ok", "warn", "fail", "info"]
    found: str
    why: str = ""
    fix: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error reply (RFC 9457, application/problem+json); more fields may follow by code."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None


# --- inside the daemon: what several packages hand to each other ----------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionDefinition:
    """A function that is ready to be started: its spec with every name resolved to content."""

    id: FunctionId
    app_id: AppId
    spec: FunctionSpec
    layers: tuple[ImageId, ...]
    """Top first: the index of the user's source (when there is any), then the image."""
    serialized: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTimings:
    """What the runner measured for one input, in microseconds."""

    input_load_us: int = 0
    run_us: int = 0
    output_store_us: int = 0


# --- the client stream (WebSocket, GET /api/v1/stream) --------------------------------------------
# One binary message = 4 bytes big-endian length of the header | header (JSON) | body. The body is
# the concatenation of the payloads whose sizes the header lists. Payloads are opaque: pickles made
# by the client and opened in the container, and the other way round.


class Attach(Record, frozen=True, kw_only=True, tag_field="t", tag="attach"):
    """Own an app: its logs come on this stream, and it stops when the stream ends."""

    app: str


class CallOpen(Record, frozen=True, kw_only=True, tag_field="t", tag="call"):
    """Begin a call; may carry its first inputs, and ``last`` when there are no more."""

    call: Annotated[str, Meta(pattern=r"^fc-[0-9a-z]{26}$")]
    function: str
    kind: Literal["unary", "map", "gen"]
    sizes: list[int] = []
    last: bool = False


class Inputs(Record, frozen=True, kw_only=True, tag_field="t", tag="inputs"):
    """More inputs of a map; they count on from the ones before."""

    call: str
    sizes: list[int]
    last: bool = False


class Cancel(Record, frozen=True, kw_only=True, tag_field="t", tag="cancel"):
    """Cancel a call: queued inputs are dropped, running ones interrupted."""

    call: str


class Ping(Record, frozen=True, kw_only=True, tag_field="t", tag="ping"):
    """Answered by pong with the same value."""

    value: int


ClientMessage = Attach | CallOpen | Inputs | Cancel | Ping

OutputStatus = Literal["ok", "raised", "failed", "yield", "end"]
"""ok, yield: one pickled value. raised: type name, message, traceback text (all UTF-8), a pickled
dict of the exception (may be empty). failed: a problem in JSON. end: a generator finished."""


class Output(msgspec.Struct, frozen=True, array_like=True):
    """Header entry of one output; its fields lie in the body."""

    index: int
    status: OutputStatus
    sizes: list[int]


class Outputs(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="outputs"):
    """Results of a call, in the order they finished."""

    call: str
    items: list[Output]


class CallDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="done"):
    """Every input of the call is answered, or the call was refused or cancelled (problem set)."""

    call: str
    problem: dict[str, object] | None = None
    phases_us: dict[str, int] = {}
    start: str | None = None


class Logs(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="logs"):
    """Log lines of an app's containers."""

    app: str
    lines: list[LogLine]
    lost: int = 0
    """Lines that this client was too slow for."""


class ContainerEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="container"):
    """A container of an app changed its state: for progress displays."""

    app: str
    container: str
    function: str
    state: str
    phases_us: dict[str, int] = {}
    reason: str = ""


class Pong(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="pong"):
    """Answer to ping."""

    value: int


class StreamError(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="error"):
    """A message could not be understood; the stream is closed after it."""

    problem: dict[str, object]


ServerMessage = Outputs | CallDone | Logs | ContainerEvent | Pong | StreamError
