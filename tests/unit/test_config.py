"""Configuration: precedence, unknown keys, wrong values."""

from pathlib import Path

import pytest

from hostd.config import Config, known_keys, load
from hostd.errors import ConfigError


def test_without_anything_the_defaults_hold():
    assert load(environ={}) == Config()


def test_flag_beats_environment_beats_file(tmp_path):
    file = tmp_path / "hostd.toml"
    file.write_text(
        'log_level = "debug"\n[fs]\nmode = "fuse"\nfetch_timeout_s = 3\n[build]\nparallel = 1\n'
    )
    config = load(
        path=file,
        environ={"HOSTD_FS_MODE": "erofs", "HOSTD_BUILD_PARALLEL": "3", "PATH": "/bin"},
        flags={"build.parallel": 4, "data_dir": None},
    )
    assert (config.log_level, config.fs.mode, config.fs.fetch_timeout_s, config.build.parallel) == (
        "debug",
        "erofs",
        3.0,
        4,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[fs]\nmod = 'fuse'", "fs.mod is not a setting"),
        ("speed = 1", "speed is not a setting"),
        ("[fs]\nmode = 'nfs'", "expected erofs, fuse or auto"),
        ("[fs]\nmode = 3", "fs.mode is 3"),
        ("[build]\nparallel = 0", "expected 1 to 64"),
        ("[build]\nparallel = 'many'", "build.parallel is 'many'"),
        ("[build]\nenv = 3", "build.env is 3"),
        ("data_dir = 'here'", "expected an absolute path"),
        ("[api]\nlisten = '7900'", "expected host:port"),
        ("= 1", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path, text, said):
    file = tmp_path / "hostd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path=file, environ={})
    assert said in str(caught.value)


def test_an_unknown_variable_names_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        load(environ={"HOSTD_FS_MOD": "fuse"})
    assert caught.value.hint == "did you mean HOSTD_FS_MODE?"


def test_variables_of_the_client_are_not_settings():
    assert (
        load(environ={"HOSTD_URL": "http://h:1", "HOSTD_SOCKET": "/s", "HOSTD_TOKEN": "t"})
        == Config()
    )


def test_a_missing_file_that_was_named_is_an_error():
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path=Path("/nonexistent/hostd.toml"), environ={})


def test_build_env_may_come_as_toml():
    config = load(environ={"HOSTD_BUILD_ENV": '{ A = "1" }'})
    assert config.build.env == {"A": "1"}


def test_every_key_is_known_once():
    assert len(set(known_keys())) == len(known_keys())
