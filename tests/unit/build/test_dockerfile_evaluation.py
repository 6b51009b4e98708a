"""What the instructions of a Dockerfile mean: scopes, shells, sources, configuration."""

import pytest

from hostd.build.copying import CopyWork
from hostd.build.recipe import parse_recipe
from hostd.build.steps import DirectoryWork, RunWork
from hostd.errors import DockerfileError
from hostd.model import Dockerfile, ImageConfig, Recipe, SourceFile

BASE = ImageConfig(env={"PATH": "/bin"}, cmd=("sh",))
CONTEXT = [
    SourceFile(path="a.txt", digest="sha256:" + "1" * 64),
    SourceFile(path="b.txt", digest="sha256:" + "2" * 64),
]


def plan(text, build_args=None):
    recipe = Recipe(
        steps=[Dockerfile(text=text, context=CONTEXT, build_args=build_args or {})],
    )
    return parse_recipe(recipe).steps(BASE)


def works(text, build_args=None):
    return [step.work for step in plan("FROM x\n" + text, build_args) if step.work is not None]


def config(text, build_args=None):
    return plan("FROM x\n" + text, build_args)[-1].config


def test_arg_before_from_names_the_base():
    recipe = Recipe(steps=[Dockerfile(text="ARG V=1\nARG N=deb$V\nFROM ${N}:x AS stage")])
    assert parse_recipe(recipe).base.image == "deb1:x"
    recipe = Recipe(steps=[Dockerfile(text="ARG V=1\nFROM deb$V", build_args={"V": "2"})])
    assert parse_recipe(recipe).base.image == "deb2"


def test_outer_args_need_to_be_declared_again():
    text = "ARG A=outer\nFROM x\nENV before=$A\nARG A\nENV after=$A"
    env = plan(text)[-1].config.env
    assert (env["before"], env["after"]) == ("", "outer")


def test_env_hides_arg_and_words_see_the_state_before():
    env = config("ARG A=arg\nENV A=env\nENV A=new B=$A").env
    assert (env["A"], env["B"]) == ("new", "env")


def test_build_args_win_over_defaults_and_unused_ones_warn():
    steps = plan("FROM x\nARG A=1\nRUN y", {"A": "2", "C": "3"})
    assert steps[1].work == RunWork(args=("/bin/sh", "-c", "y"), build_args=(("A", "2"),))
    assert "C" in steps[-1].warning


def test_arg_is_not_part_of_the_image():
    assert config("ARG A=1\nRUN x").env == {"PATH": "/bin"}


def test_predefined_proxy_arguments_are_not_keyed():
    (work,) = works("RUN x", {"HTTP_PROXY": "p"})
    assert (work.build_args, work.unkeyed) == ((), (("HTTP_PROXY", "p"),))


def test_shell_applies_to_later_shell_forms():
    first, second = works('RUN a\nSHELL ["/bin/bash", "-ec"]\nRUN b')
    assert (first.args, second.args) == (("/bin/sh", "-c", "a"), ("/bin/bash", "-ec", "b"))


def test_variables_in_run_and_cmd_are_for_the_shell():
    steps = plan("FROM x\nENV A=1\nRUN echo $A\nCMD echo $A")
    assert steps[1].work.args[-1] == "echo $A"
    assert steps[2].config.cmd == ("/bin/sh", "-c", "echo $A")


def test_heredoc_alone_is_a_script():
    (work,) = works("RUN <<EOF\na\nb\nEOF")
    assert work.args == ("/bin/sh", "-c", "a\nb\n")
    (work,) = works("RUN <<-'EOF'\n\t#!/usr/bin/env python3\n\tprint(1)\nEOF")
    assert work.script == b"#!/usr/bin/env python3\nprint(1)\n"


def test_heredoc_with_a_command_is_left_to_the_shell():
    (work,) = works("RUN cat <<EOF > /x && y\n$HOME\nEOF")
    assert work.args[-1] == "cat <<EOF > /x && y\n$HOME\nEOF"


def test_copy_decides_sources_destination_owner_and_mode():
    (_, work) = works("WORKDIR /w\nARG U=me\nCOPY --chown=$U:g --chmod=0750 a.txt b.txt sub/")
    assert isinstance(work, CopyWork)
    assert [source.name for source in work.sources] == ["a.txt", "b.txt"]
    assert (work.destination, work.into_directory) == ("/w/sub", True)
    assert (work.owner, work.mode, work.unpack) == ("me:g", 0o750, False)


def test_copy_understands_patterns_json_and_dots():
    (work,) = works('COPY ["*.txt", "."]')
    assert [source.name for source in work.sources] == ["a.txt", "b.txt"]
    assert (work.destination, work.into_directory) == ("/", True)


def test_copy_heredocs_become_files_and_expand():
    (work,) = works("ENV A=1\nCOPY <<one <<'two' a.txt /d/\nx=$A\none\ny=$A\ntwo")
    assert [(s.name, s.entries[0].data) for s in work.sources] == [
        ("one", b"x=1\n"),
        ("two", b"y=$A\n"),
        ("a.txt", None),
    ]


def test_pattern_without_match_warns():
    steps = plan("FROM x\nCOPY *.rs /d/")
    assert steps[0].warning == "no file matches: nothing is copied"


def test_workdir_is_relative_to_the_last_one_and_made_for_the_user():
    assert works("USER me\nWORKDIR /a\nWORKDIR b/../c\nWORKDIR /") == [
        DirectoryWork(path="/a", owner="me"),
        DirectoryWork(path="/a/c", owner="me"),
    ]


def test_configuration_of_all_kinds():
    result = config(
        'ENV a=1 b="two words" c=$a\nENV old style value\nLABEL x=y "a b"="c"\nUSER me:g\n'
        'EXPOSE 80 8080-8090/udp 80\nENTRYPOINT ["e"]\nCMD c d'
    )
    assert result == ImageConfig(
        env={"PATH": "/bin", "a": "1", "b": "two words", "c": "", "old": "style value"},
        user="me:g",
        labels={"x": "y", "a b": "c"},
        exposed=("80", "8080-8090/udp"),
        entrypoint=("e",),
        cmd=("/bin/sh", "-c", "c d"),
    )


def test_entrypoint_drops_the_command_of_the_base_only():
    assert config("ENTRYPOINT e").cmd == ()
    assert config('CMD ["own"]\nENTRYPOINT e').cmd == ("own",)


@pytest.mark.parametrize(
    "keyword", ["STOPSIGNAL", "HEALTHCHECK", "VOLUME", "MAINTAINER", "ONBUILD"]
)
def test_tolerated_instructions_warn(keyword):
    (step,) = plan(f"FROM x\n{keyword} y")
    assert step.warning.startswith(f"{keyword} has no effect")


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "there is no FROM"),
        ("RUN x", 1, 1, "RUN stands before FROM"),
        ("FROM a b", 1, 1, "FROM needs one image"),
        ("FROM $NO", 1, 1, "empty after expansion"),
        ("FROM --platform=linux/mips x", 1, 1, "this host builds for"),
        ("FROM x\nFROM y", 2, 1, "several stages are not supported"),
        ("FROM x\nCOPY a.txt", 2, 1, "needs sources and a destination"),
        ("FROM x\nCOPY a.txt b.txt /d", 2, 1, "need a directory as destination"),
        ("FROM x\nCOPY \\\n  no.txt /d", 3, 3, "'no.txt' is not in the build context"),
        ("FROM x\nCOPY ../a /d", 2, 6, "outside the build context"),
        ("FROM x\nCOPY [ /d", 2, 6, "ends too early"),
        ("FROM x\nCOPY --chmod=u+x a.txt /d", 2, 1, "expected an octal number"),
        ("FROM x\nCOPY --chown= a.txt /d", 2, 1, "--chown is empty"),
        ("FROM x\nADD https://e.x/y /d", 2, 5, "only local files"),
        ("FROM x\nENV a", 2, 1, "ENV a has no value"),
        ("FROM x\nENV a=1 b", 2, 9, "'b' has no ="),
        ("FROM x\nENV =1", 2, 5, "no name before ="),
        ("FROM x\nENV a=${b", 2, 7, "} is missing"),
        ("FROM x\nENV a 'b", 2, 7, "quote ' is not closed"),
        ("FROM x\nUSER a:b:c", 2, 1, "user is 'a:b:c'"),
        ("FROM x\nUSER $NO", 2, 1, "user is ''"),
        ("FROM x\nWORKDIR $NO", 2, 1, "empty after expansion"),
        ("FROM x\nEXPOSE http", 2, 1, "port is 'http'"),
        ("FROM x\nARG =1", 2, 5, "ARG needs a name"),
        ("FROM x\nCOPY <<a/b /d\nx\na/b", 2, 6, "cannot be the name of a file"),
        ("FROM x\nWORKDIR /" + "a" * 300, 2, 1, "cannot be a path of an image"),
    ],
)
def test_errors_name_line_and_column(text, line, column, message):
    with pytest.raises(DockerfileError) as caught:
        plan(text)
    assert message in caught.value.text
    assert (caught.value.fields["line"], caught.value.fields["column"]) == (line, column)
