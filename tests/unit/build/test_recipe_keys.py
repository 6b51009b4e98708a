"""Recipes of the SDK become plans, and equal work has equal keys."""

import pytest

from hostd.build.recipe import base_key, image_key, layer_keys, parse_recipe, request_key
from hostd.build.steps import RunWork
from hostd.errors import DockerfileError, InvalidError
from hostd.ids import ImageId
from hostd.model import (
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Env,
    Expose,
    From,
    ImageConfig,
    Label,
    Recipe,
    Run,
    Shell,
    SourceFile,
    User,
    Workdir,
)

BASE = ImageConfig(env={"PATH": "/bin"})
DEBIAN = From(image="debian_slim")


def plan(*steps):
    return parse_recipe(Recipe(steps=[DEBIAN, *steps])).steps(BASE)


def keys(*steps):
    planned = plan(*steps)
    layers = layer_keys(base_key(ImageId("im-x")), planned)
    return [*layers, image_key(layers[-1], planned[-1].config)]


def file(path, digit="1", **more):
    return SourceFile(path=path, digest="sha256:" + digit * 64, **more)


def test_every_step_of_the_sdk_is_understood():
    steps = plan(
        Env(variables={"A": "1"}),
        Workdir(path="w"),
        User(user="me"),
        Shell(args=["bash", "-c"]),
        Run(command="x", heredoc="in"),
        Copy(files=[file("/a/b")], owner="me"),
        Entrypoint(args=["e"]),
        Cmd(args=["c"]),
        Label(labels={"l": "v"}),
        Expose(ports=["80"]),
        Dockerfile(text="RUN echo\nENV B=$A"),
    )
    assert [step.text.split()[0] for step in steps] == [
        "ENV", "WORKDIR", "USER", "SHELL", "RUN", "COPY", "ENTRYPOINT", "CMD", "LABEL", "EXPOSE",
        "RUN", "ENV",
    ]  # fmt: skip
    assert steps[4].work == RunWork(args=("bash", "-c", "x"), stdin=b"in")
    assert steps[-1].config == ImageConfig(
        env={"PATH": "/bin", "A": "1", "B": "1"},
        workdir="/w",
        user="me",
        shell=("bash", "-c"),
        entrypoint=("e",),
        cmd=("c",),
        labels={"l": "v"},
        exposed=("80",),
    )


def test_equal_recipes_have_equal_keys():
    assert keys(Run(command="x"), Cmd(args=["c"])) == keys(Run(command="x"), Cmd(args=["c"]))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Run(command="x"), Run(command="y")),
        (Run(command="x"), Run(args=["x"])),
        (Run(command="x"), Run(command="x", heredoc="")),
        (Copy(files=[file("/a")]), Copy(files=[file("/a", "2")])),
        (Copy(files=[file("/a")]), Copy(files=[file("/b")])),
        (Copy(files=[file("/a")]), Copy(files=[file("/a", mode=0o755)])),
        (Copy(files=[file("/a")]), Copy(files=[file("/a")], owner="me")),
        (Workdir(path="/a"), Workdir(path="/b")),
    ],
)
def test_different_work_has_different_keys(left, right):
    assert keys(left) != keys(right)


def test_sizes_and_order_of_copied_files_do_not_matter():
    left = Copy(files=[file("/a"), file("/b", size_bytes=1)])
    right = Copy(files=[file("/b"), file("/a")])
    assert keys(left) == keys(right)


@pytest.mark.parametrize(
    "before",
    [Env(variables={"A": "1"}), User(user="me"), Workdir(path="/w"), Shell(args=["bash", "-c"])],
)
def test_a_command_depends_on_what_it_sees(before):
    assert keys(before, Run(command="x"))[1] != keys(Run(command="x"))[0]


def test_a_command_does_not_depend_on_what_it_cannot_see():
    plain = keys(Run(command="x"))
    labelled = keys(Label(labels={"a": "b"}), Cmd(args=["c"]), Run(command="x"))
    assert labelled[2] == plain[0]
    assert labelled[-1] != plain[-1]


def test_keys_depend_on_the_base_and_on_everything_before():
    steps = plan(Run(command="x"), Run(command="y"))
    one = layer_keys(base_key(ImageId("im-1")), steps)
    two = layer_keys(base_key(ImageId("im-2")), steps)
    assert len({*one, *two}) == 4
    assert base_key(None) not in {base_key(ImageId("im-1")), base_key(ImageId("im-2"))}


def test_dockerfiles_and_steps_share_layers():
    dockerfile = Recipe(steps=[Dockerfile(text="FROM debian_slim\nRUN x  # y\n")])
    planned = parse_recipe(dockerfile).steps(BASE)
    assert layer_keys(base_key(ImageId("im-x")), planned)[0] == keys(Run(command="x  # y"))[0]


def test_comments_and_spacing_are_in_no_key():
    def key(text):
        steps = parse_recipe(Recipe(steps=[Dockerfile(text=text)])).steps(BASE)
        return layer_keys("", steps)

    assert key("FROM x\n# c\nrun   a b") == key("FROM x\nRUN a b\n")


def test_requests_are_joined_by_content_and_force():
    recipe = Recipe(steps=[DEBIAN, Run(command="x")])
    again = Recipe(steps=[From(image="debian_slim"), Run(command="x")])
    assert request_key(recipe, force=False) == request_key(again, force=False)
    assert request_key(recipe, force=False) != request_key(recipe, force=True)


@pytest.mark.parametrize(
    "steps",
    [
        [Run(command="x")],
        [DEBIAN, DEBIAN],
        [DEBIAN, Run()],
        [DEBIAN, Run(command="x", args=["y"])],
        [DEBIAN, Run(args=[])],
        [DEBIAN, Run(command="a\0b")],
        [DEBIAN, Copy(files=[SourceFile(path="relative", digest="sha256:" + "1" * 64)])],
        [DEBIAN, Copy(files=[SourceFile(path="/", digest="sha256:" + "1" * 64)])],
        [DEBIAN, Copy(files=[SourceFile(path="/a")])],
        [DEBIAN, Copy(files=[file("/a"), file("/x/../a")])],
        [DEBIAN, Shell(args=[])],
        [DEBIAN, User(user="")],
        [DEBIAN, Env(variables={"A": "\0"})],
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(steps):
    with pytest.raises(InvalidError):
        parse_recipe(Recipe(steps=steps)).steps(BASE)


def test_from_in_the_middle_has_a_place():
    with pytest.raises(DockerfileError, match="FROM stands in the middle"):
        plan(Dockerfile(text="RUN x\nFROM y"))


def test_texts_are_one_short_line():
    (step,) = plan(Run(command="a\nb" + "c" * 2_000))
    assert "\n" not in step.text
    assert len(step.text) == 1_000
