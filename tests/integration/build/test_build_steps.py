"""What single steps do to an image."""

import stat

import pytest

from hostd.errors import DockerfileError, ImageBuildError, InvalidError, NotFoundError
from hostd.model import Copy, Dockerfile, Env, From, Run, SourceFile, User, Workdir

pytestmark = pytest.mark.anyio
DEBIAN = From(image="debian_slim")


async def test_run_changes_files_and_shows_output(workshop):
    events = await workshop.events(DEBIAN, Run(command="echo hello && echo oops >&2; echo x > /m"))
    lines = [(e.stream, e.text) for e in events if e.kind == "line"]
    assert sorted(lines) == [("stderr", "oops"), ("stdout", "hello")]
    assert [e.kind for e in events if e.kind != "line"] == ["cached", "step", "step_done", "done"]
    assert workshop.read(events[-1].image_id, "/m") == b"x\n"


async def test_failing_step_shows_its_output_and_exit_code(workshop):
    events = await workshop.events(DEBIAN, Run(command="echo working; echo broken >&2; exit 7"))
    assert {"working", "broken"} <= {e.text for e in events if e.kind == "line"}
    error = await workshop.failure(DEBIAN, Run(command="echo working; echo broken >&2; exit 7"))
    assert isinstance(error, ImageBuildError)
    assert error.fields["exit_code"] == 7
    assert error.fields["step"] == 2
    assert error.fields["image_id"] == workshop.base
    assert sorted(error.fields["output"]) == ["broken", "working"]
    assert "exited with status 7" in error.text


async def test_killed_step_says_so(workshop):
    error = await workshop.failure(DEBIAN, Run(command="kill -9 $$"))
    assert "killed by SIGKILL" in error.text
    assert error.fields["exit_code"] == 137


async def test_command_that_is_not_there(workshop):
    error = await workshop.failure(DEBIAN, Run(args=["/no/such/program"]))
    assert isinstance(error, ImageBuildError)
    assert "/no/such/program" in error.text


async def test_exec_form_needs_no_shell(workshop):
    image = await workshop.build(DEBIAN, Run(args=["touch", "/a b", "/$HOME"]))
    assert workshop.has(image, "/a b")
    assert workshop.has(image, "/$HOME")


async def test_standard_input_of_a_step(workshop):
    image = await workshop.build(DEBIAN, Run(command="cat > /in", heredoc="one\ntwo\n"))
    assert workshop.read(image, "/in") == b"one\ntwo\n"


async def test_removed_files_and_directories_are_gone(workshop):
    image = await workshop.build(
        DEBIAN,
        Run(command="mkdir -p /d/e && echo 1 > /d/f && echo 2 > /d/e/g"),
        Run(command="rm -r /d/e /etc/hostname && rm -rf /usr/share/zoneinfo"),
        Run(command="test ! -e /d/e && test ! -e /etc/hostname && test -e /d/f"),
    )
    assert not workshop.has(image, "/d/e")
    assert not workshop.has(image, "/usr/share/zoneinfo")
    assert workshop.read(image, "/d/f") == b"1\n"


async def test_replaced_directory_does_not_show_what_it_hid(workshop):
    image = await workshop.build(
        DEBIAN,
        Run(command="mkdir /r && touch /r/old"),
        Run(command="rm -r /r && mkdir /r && touch /r/new"),
    )
    assert not workshop.has(image, "/r/old")
    assert workshop.has(image, "/r/new")


async def test_hard_links_stay_one_file(workshop):
    image = await workshop.build(
        DEBIAN,
        Run(command="head -c 100000 /dev/urandom > /one && ln /one /two && ln -s one /three"),
        Run(command="test $(stat -c %i /one) = $(stat -c %i /two) && test $(stat -c %h /one) = 2"),
    )
    index = workshop.images.open_index(image)
    assert index.resolve(b"/one") == index.resolve(b"/two")


async def test_modes_owners_and_setuid_are_kept(workshop):
    image = await workshop.build(
        DEBIAN,
        Run(command="cp /bin/true /su && chown 1000:33 /su && chmod 6755 /su"),
        Run(command="mkdir -m 1777 /sticky && mkfifo /pipe"),
        Run(command="test -u /su -a -g /su && test -k /sticky && test -p /pipe"),
    )
    assert workshop.stat(image, "/su") == (stat.S_IFREG | 0o6755, 1000, 33)
    assert workshop.stat(image, "/sticky") == (stat.S_IFDIR | 0o1777, 0, 0)
    assert workshop.stat(workshop.base, "/usr/bin/passwd")[0] & stat.S_ISUID


async def test_user_and_workdir_hold_for_later_steps(workshop):
    image = await workshop.build(
        DEBIAN,
        Run(command="useradd --create-home --uid 1234 maria"),
        User(user="maria"),
        Workdir(path="/task/here"),
        Run(command='echo "$(id -un) $(id -gn) $HOME" > who && pwd >> who'),
    )
    assert workshop.read(image, "/task/here/who") == b"maria maria /home/maria\n/task/here\n"
    assert workshop.stat(image, "/task/here") == (stat.S_IFDIR | 0o755, 1234, 1234)
    assert workshop.images.manifest(image).config.user == "maria"


async def test_unknown_user_is_named(workshop):
    error = await workshop.failure(DEBIAN, User(user="nobody-here"), Run(command="true"))
    assert isinstance(error, ImageBuildError)
    assert "user 'nobody-here' is not in /etc/passwd" in error.text


async def test_environment_is_seen_by_steps_and_kept(workshop):
    image = await workshop.build(
        DEBIAN, Env(variables={"GREETING": "hi there"}), Run(command='echo "$GREETING" > /g')
    )
    assert workshop.read(image, "/g") == b"hi there\n"
    assert workshop.images.manifest(image).config.env["GREETING"] == "hi there"


async def test_copy_follows_links_of_the_image_and_takes_modes(workshop):
    tool = await workshop.upload("/bin/tool", b"#!/bin/sh\necho run\n", mode=0o755)
    data = await workshop.upload("/srv/data/big", b"x" * 5000)
    image = await workshop.build(
        DEBIAN, Copy(files=[tool, data], owner="www-data"), Run(command="tool > /out")
    )
    assert workshop.read(image, "/out") == b"run\n"
    assert workshop.stat(image, "/usr/bin/tool") == (stat.S_IFREG | 0o755, 33, 33)
    assert workshop.stat(image, "/srv/data") == (stat.S_IFDIR | 0o755, 33, 33)
    assert workshop.read(image, "/srv/data/big") == b"x" * 5000


async def test_file_that_was_not_uploaded_is_named(workshop):
    ghost = SourceFile(path="/srv/ghost", digest="sha256:" + "a" * 64)
    error = await workshop.failure(DEBIAN, Copy(files=[ghost]))
    assert isinstance(error, NotFoundError)
    assert "srv/ghost" in error.text


async def test_dockerfile_with_everything(workshop):
    context = [
        await workshop.upload("app/main.py", b"print('main')\n"),
        await workshop.upload("app/lib/util.py", b"x = 1\n"),
        await workshop.upload("notes.txt", b"notes\n"),
        SourceFile(path="app/link", kind="symlink", target="main.py"),
    ]
    text = r"""# escape=\
ARG TAG=bookworm-slim
FROM debian:${TAG} AS only
ARG WHO=world
ENV GREETING="hello $WHO"
WORKDIR /srv
COPY --chown=33:33 app ./app/
COPY *.txt /srv/text/
COPY <<config.ini <<'raw' conf/
[a]
greeting=${GREETING}
config.ini
$GREETING
raw
RUN <<EOF
set -e
echo "$GREETING" > greeting
python app/link > out
EOF
RUN <<'PY'
#!/usr/bin/env python3
import os
open("/srv/from-python", "w").write(os.environ["WHO"])
PY
RUN cat <<-A > both && cat <<B >> both
	one
	A
two
B
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN [[ -f greeting ]] && \
    # a comment between
    echo bash > shell
LABEL kind="test image"
EXPOSE 80
ENTRYPOINT ["python3"]
CMD ["/srv/app/main.py"]
"""
    image = await workshop.dockerfile(text, context, WHO="you")
    assert workshop.read(image, "/srv/greeting") == b"hello you\n"
    assert workshop.read(image, "/srv/out") == b"main\n"
    assert workshop.read(image, "/srv/from-python") == b"you"
    assert workshop.read(image, "/srv/both") == b"one\ntwo\n"
    assert workshop.read(image, "/srv/shell") == b"bash\n"
    assert workshop.read(image, "/srv/text/notes.txt") == b"notes\n"
    assert workshop.read(image, "/srv/conf/config.ini") == b"[a]\ngreeting=hello you\n"
    assert workshop.read(image, "/srv/conf/raw") == b"$GREETING\n"
    assert workshop.stat(image, "/srv/app/lib/util.py")[1:] == (33, 33)
    config = workshop.images.manifest(image).config
    assert config.entrypoint == ("python3",)
    assert config.cmd == ("/srv/app/main.py",)
    assert config.labels == {"kind": "test image"}
    assert not workshop.has(image, "/run/hostd")


async def test_tolerated_instructions_warn_in_the_log(workshop):
    events = await workshop.events(Dockerfile(text="FROM debian_slim\nVOLUME /data\nRUN true"))
    assert "warning: VOLUME has no effect: volumes are attached to functions, not to images" in [
        event.text for event in events
    ]


async def test_empty_base(workshop):
    file = await workshop.upload("/hello", b"hi\n")
    image = await workshop.build(From(image="scratch"), Copy(files=[file]))
    assert [path for path, _ in workshop.images.open_index(image).walk()] == [b"/", b"/hello"]


async def test_image_by_name_is_a_base(workshop):
    await workshop.build(DEBIAN, Run(command="echo 1 > /first"), name="first")
    image = await workshop.dockerfile("FROM first\nRUN cat /first > /second")
    assert workshop.read(image, "/second") == b"1\n"
    row = await workshop.store.image(image)
    assert row.history == ("FROM debian_slim", "RUN echo 1 > /first", "RUN cat /first > /second")


@pytest.mark.parametrize(
    ("steps", "kind", "message"),
    [
        ([From(image="ubuntu:22.04")], NotFoundError, "pulls from no registry"),
        ([Dockerfile(text="\nFROM ubuntu")], DockerfileError, "Dockerfile:2:1: image ubuntu"),
        ([Dockerfile(text="FROM debian_slim\nNONE x")], DockerfileError, "Dockerfile:2:1"),
        ([From(image="debian_slim", python_version="3.12")], InvalidError, "has 3.11"),
        ([DEBIAN, Copy(files=[], owner="who-is-this")], InvalidError, "user 'who-is-this'"),
        (
            [Dockerfile(text="FROM debian_slim\nCOPY <<a /etc\nx\na\nCOPY <<b /etc/a/b\nx\nb")],
            DockerfileError,
            "Dockerfile:5:1: /etc/a is there and is not a directory",
        ),
        (
            [Dockerfile(text="FROM debian_slim\nWORKDIR /etc/passwd")],
            DockerfileError,
            "Dockerfile:2:1: /etc/passwd is there and is not a directory",
        ),
    ],
)
async def test_recipes_that_do_not_fit_are_typed_errors(workshop, steps, kind, message):
    before = workshop.containers
    error = await workshop.failure(*steps)
    assert type(error) is kind
    assert message in error.text
    assert workshop.containers == before
