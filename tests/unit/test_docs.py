"""The manual is complete: settings, error codes, commands, options and exit codes are all in it."""

import re
from pathlib import Path

import click
import pytest

from hostd.cli import ALIASES, COMMANDS
from hostd.cli.group import CommandGroup, hostctl
from hostd.config import known_keys, load
from hostd.errors import BY_CODE

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
ERRORS = (ROOT / "docs/errors.md").read_text()
CLI = (ROOT / "docs/cli.md").read_text()


def rows(text):
    """First cells of all table rows, to their other cells."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_setting_is_in_the_manual_and_no_other():
    settings = rows(CONFIGURATION.partition("## Settings")[2].partition("##")[0])
    assert [key for key in settings if key not in ("setting", "---")] == known_keys()


@pytest.mark.parametrize("key", known_keys())
def test_manual_gives_the_default_of_every_setting(key):
    value = load(environ={}, path=Path("/dev/null"))
    for part in key.split("."):
        value = getattr(value, part)
    written = rows(CONFIGURATION)[key][0].strip("`")
    shown = str(value).lower() if isinstance(value, bool) else str(value) or '""'
    assert written == shown


@pytest.mark.parametrize("code", BY_CODE)
def test_every_error_code_is_in_the_manual_with_class_and_status(code):
    cls = BY_CODE[code]
    name, status, http, meaning, _ = rows(ERRORS)[code]
    assert (name, status, http) == (f"`{cls.__name__}`", str(cls.exit_status), str(cls.http_status))
    assert meaning


def test_exit_statuses_of_all_errors_are_in_the_manual():
    documented = set(rows(CLI.partition("## Exit codes")[2]))
    assert {str(cls.exit_status) for cls in BY_CODE.values()} <= documented


def every_command():
    root = hostctl()
    context = click.Context(root)
    yield "hostctl", root
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, CommandGroup):
            yield from ((f"{name} {inner}", command.commands[inner]) for inner in command.commands)


@pytest.mark.parametrize(("name", "command"), list(every_command()))
def test_every_command_and_its_own_options_are_in_the_manual(name, command):
    assert name == "hostctl" or f"`{name}" in CLI or f"`{name.split()[0]} " in CLI
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert any(opt in CLI for opt in option.opts), (name, option.opts)


@pytest.mark.parametrize("alias", ["why"])
def test_aliases_that_people_are_told_are_in_the_manual(alias):
    assert f"`{alias}`" in CLI
    assert alias in ALIASES


@pytest.mark.parametrize(
    "path", [p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))], ids=str
)
def test_links_between_documents_lead_somewhere(path):
    text = (ROOT / path).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"


def test_architecture_and_decisions_stay_short():
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 200
    for path in ROOT.glob("docs/adr/*.md"):
        assert len(path.read_text().splitlines()) <= 40, path
    for path in ROOT.glob("hostd/*/DESIGN.md"):
        assert len(path.read_text().splitlines()) <= 150, path
