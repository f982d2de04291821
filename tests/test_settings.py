"""Settings: options, environment variables, and their way to another process."""

import argparse
from dataclasses import asdict, replace

import pytest

from spyglass_bridge import settings as bridge
from spyglass_common.exposure import is_local
from spyglass_common.settings import add_settings, to_environ
from spyglass_launcher.settings import SETTINGS
from spyglass_server import settings as server
from spyglass_server.config import resolve


def parse(*arguments: str, **environ: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_settings(parser, SETTINGS, environ)
    return parser.parse_args(arguments)


def test_an_option_beats_its_variable_and_the_variable_the_default() -> None:
    assert parse().max_batch == 64
    assert parse(SPYGLASS_MAX_BATCH="3").max_batch == 3
    assert parse("--max-batch", "5", SPYGLASS_MAX_BATCH="3").max_batch == 5


def test_a_setting_may_have_a_flag_that_negates_it() -> None:
    assert parse().page == "on"
    assert parse("--no-page").page == "off"
    assert parse("--page", "public", SPYGLASS_PAGE="off").page == "public"
    assert parse("--no-page", SPYGLASS_PAGE="public").page == "off"


def test_several_values_come_repeated_or_together_or_with_commas() -> None:
    for options in (
        parse("--served-model-name", "a/b", "c"),
        parse("--served-model-name", "a/b", "--served-model-name", "c"),
        parse(SPYGLASS_SERVED_MODEL_NAME="a/b, c"),
        parse("--served-model-name", "a/b", "c", SPYGLASS_SERVED_MODEL_NAME="other"),
    ):
        assert options.served_model_name == ("a/b", "c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http", "8000"),
        ("http", "localhost:99999"),
        ("max-batch", "0"),
        ("max-model-len", "many"),
        ("dtype", "float16"),
        ("request-timeout", "nan"),
        ("price-input", "-1"),
        ("gpu-memory-utilization", "1.01"),
        ("load-format", "fast"),
        ("socket-mode", "0999"),
        ("socket-mode", "rw"),
        ("cors-origin", "https://a.example/path"),
        ("cors-origin", "a.example"),
    ],
)
def test_wrong_values_are_refused_wherever_they_stand(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(f"--{name}", value)
    assert f"--{name}" in capsys.readouterr().err
    variable = "SPYGLASS_" + name.upper().replace("-", "_")
    with pytest.raises(SystemExit):
        parse(**{variable: value})
    assert variable in capsys.readouterr().err


def test_what_is_handed_on_as_variables_arrives_the_same() -> None:
    options = parse("--api-key", "a", "b", "--http", "unix:/run/x", "--max-model-len", "77", "--price-input", "0.5")
    assert parse(**to_environ(SETTINGS, vars(options))) == options


def test_the_help_names_each_variable_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help", SPYGLASS_API_KEY="secret-key")
    text = " ".join(capsys.readouterr().out.split())
    assert all(setting.env in text for setting in SETTINGS)
    assert "secret-key" not in text


def test_serve_offers_the_settings_of_both_each_once_and_in_their_order() -> None:
    for table in (server.SETTINGS, bridge.SETTINGS):
        assert tuple(setting for setting in SETTINGS if setting in table) == table
    assert len(SETTINGS) == len({setting.name for setting in (*server.SETTINGS, *bridge.SETTINGS)})


def test_every_setting_of_the_engine_is_an_option_and_goes_by_its_name() -> None:
    engine = resolve(parse()).engine
    fields = asdict(engine)
    assert fields == {setting.dest: setting.default for setting in server.SETTINGS if setting.dest in fields}
    options = parse("--dtype", "float32", "--max-batch", "7", "--cache-bytes", "1")
    assert resolve(options).engine == replace(engine, dtype="float32", max_batch=7, cache_bytes=1)


def test_a_step_that_is_set_has_a_token_for_each_choice() -> None:
    assert resolve(parse("--max-batch", "600")).engine.max_step_tokens is None
    with pytest.raises(ValueError, match="--max-step-tokens must be at least --max-batch"):
        resolve(parse("--max-batch", "600", "--max-step-tokens", "512"))


def test_origins_are_kept_as_browsers_write_them() -> None:
    given = ("HTTPS://App.Example.com:443", "http://localhost:3000", "http://x:80", "http://[::1]:8080", "*")
    kept = ("https://app.example.com", "http://localhost:3000", "http://x", "http://[::1]:8080", "*")
    assert parse("--cors-origin", *given).cors_origin == kept
    assert parse(SPYGLASS_CORS_ORIGIN=",".join(given)).cors_origin == kept


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/x", True),
        ("ipv4:127.0.0.1:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("server:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_what_other_machines_reach(address: str, *, local: bool) -> None:
    assert is_local(address) is local
