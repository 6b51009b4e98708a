"""FILE::NAME: which module is imported, and which function is meant."""

import sys

import pytest

from hostd.cli.loading import apps_of, find, load
from hostd.cli.user_code import UserCodeError
from hostd.errors import InvalidError

APP = "import hostd\napp = hostd.App('a')\n"
FUNCTION = "@app.function()\ndef {name}(): return 1\n"
ENTRYPOINT = "@app.local_entrypoint()\ndef {name}(): pass\n"


@pytest.fixture(autouse=True)
def _fresh_imports():
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("hostd"):
            del sys.modules[name]


@pytest.fixture
def script(tmp_path):
    def write(text, name="cli_program.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return write


def target(ref):
    return find(*load(ref))


def test_name_finds_function_and_entrypoint(script):
    file = script(APP + FUNCTION.format(name="f") + ENTRYPOINT.format(name="go"))
    assert target(f"{file}::f").name == "f"
    assert target(f"{file}::go").name == "go"


def test_without_name_the_only_entrypoint_wins_over_functions(script):
    file = script(APP + FUNCTION.format(name="main") + ENTRYPOINT.format(name="go"))
    assert target(file).name == "go"


def test_without_name_the_only_function_is_meant(script):
    assert target(script(APP + FUNCTION.format(name="f"))).name == "f"


def test_without_name_main_is_meant_among_several(script):
    file = script(APP + ENTRYPOINT.format(name="go") + ENTRYPOINT.format(name="main"))
    assert target(file).name == "main"


def test_several_functions_are_listed_when_none_is_named(script):
    file = script(APP + FUNCTION.format(name="f") + FUNCTION.format(name="g"))
    with pytest.raises(InvalidError, match="has several functions") as caught:
        target(file)
    assert caught.value.hint == "it has f, g"


def test_functions_of_several_apps_are_told_apart_by_app(script):
    other = "b = hostd.App('b')\n@b.function(name='f')\ndef f2(): return 2\n"
    file = script(APP + FUNCTION.format(name="f") + other)
    assert target(f"{file}::b.f").app.name == "b"
    assert target(f"{file}::a.f").app.name == "a"


def test_unknown_name_says_what_there_is(script):
    with pytest.raises(InvalidError, match="has no function g") as caught:
        target(f"{script(APP + FUNCTION.format(name='f'))}::g")
    assert caught.value.hint == "it has f"


@pytest.mark.parametrize(
    ("text", "said"), [("x = 1\n", "has no app"), (APP, "has an app without functions")]
)
def test_file_without_anything_to_run_is_refused(script, text, said):
    with pytest.raises(InvalidError, match=said):
        target(script(text))


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing.py", "is not there"), ("", "is a directory"), ("program.txt", "not a Python file")],
)
def test_place_that_is_no_python_file_is_refused(script, tmp_path, name, said):
    script("", "program.txt")
    with pytest.raises(InvalidError, match=said):
        load(f"{tmp_path}/{name}".rstrip("/"))


def test_file_that_would_hide_a_library_is_refused(script):
    with pytest.raises(InvalidError, match="has the name of the module random") as caught:
        load(script(APP, "random.py"))
    assert caught.value.exit_status == 2


def test_main_block_does_not_run(script):
    load(script(APP + "if __name__ == '__main__':\n    raise SystemExit(3)\n"))


def test_name_need_not_be_an_identifier(script):
    module, _ = load(script(APP, "my-sweep.py"))
    assert module.__name__ == "my-sweep"


def test_file_in_a_package_is_imported_as_part_of_it(script):
    script("", "lab_pkg/__init__.py")
    script("VALUE = 5\n", "lab_pkg/values.py")
    module, _ = load(script(APP + "from .values import VALUE\n", "lab_pkg/sweep.py"))
    assert (module.__name__, module.VALUE) == ("lab_pkg.sweep", 5)
    assert apps_of(module)[0].name == "a"


def test_module_reference_is_imported_by_name(script, tmp_path, monkeypatch):
    script(APP + FUNCTION.format(name="f"), "cli_by_name.py")
    monkeypatch.chdir(tmp_path)
    assert find(*load("cli_by_name::f", as_module=True)).name == "f"
    with pytest.raises(InvalidError, match="module cli_absent cannot be found"):
        load("cli_absent", as_module=True)


def test_syntax_error_is_shown_with_its_line_and_exits_2(script):
    with pytest.raises(UserCodeError) as caught:
        load(script("import hostd\ndef (:\n"))
    assert caught.value.exit_status == 2
    assert 'cli_program.py", line 2' in caught.value.text
    assert "SyntaxError" in caught.value.text


def test_exception_at_import_shows_the_users_frames_only(script):
    with pytest.raises(UserCodeError) as caught:
        load(script("def inner():\n    return 1 / 0\ninner()\n"))
    assert caught.value.exit_status == 1
    assert "ZeroDivisionError" in caught.value.text
    assert "return 1 / 0" in caught.value.text
    assert "hostd/cli" not in caught.value.text
    assert "frozen" not in caught.value.text


def test_missing_module_of_the_user_is_a_traceback_of_the_users(script):
    with pytest.raises(UserCodeError, match="No module named 'cli_nowhere'"):
        load(script("import cli_nowhere\n"))


def test_wrong_definition_names_file_and_line(script):
    with pytest.raises(InvalidError, match=r"cli_program\.py:3: timeout is 'x'"):
        load(script(APP + "@app.function(timeout='x')\ndef f(): pass\n"))
