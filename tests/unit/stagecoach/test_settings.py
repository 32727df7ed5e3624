"""Settings: the environment is read once, by name, and a wrong value is refused with its name."""

from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach.settings import Settings


def test_an_empty_environment_gives_defaults() -> None:
    settings = Settings.from_environ({})
    assert (settings.s3_endpoint_url, settings.s3_addressing, settings.s3_checksums, settings.node_rank) == (
        None,
        "auto",
        "when_required",
        0,
    )


def test_our_own_variable_comes_before_the_sdk_s() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://sdk", "STAGECOACH_S3_ENDPOINT_URL": "http://ours"}
    assert Settings.from_environ(environ).s3_endpoint_url == "http://ours"
    assert Settings.from_environ({"AWS_ENDPOINT_URL": "http://sdk"}).s3_endpoint_url == "http://sdk"


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_environ({"HF_TOKEN": "", "ARGO_PROGRESS_FILE": ""}).progress_file is None


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ({}, "https://huggingface.co"),
        ({"HF_ENDPOINT": "https://huggingface.co/"}, "https://huggingface.co"),
        ({"HF_ENDPOINT": "http://mirror:80/hub//"}, "http://mirror:80/hub"),
    ],
)
def test_one_hub_has_one_address(endpoint: dict[str, str], address: str) -> None:
    assert Settings.from_environ(endpoint).hub_address == address


def test_a_token_never_shows_in_the_representation() -> None:
    assert "hf_secret" not in repr(Settings.from_environ({"HF_TOKEN": "hf_secret"}))


def test_ranks_of_another_launcher_are_numbers() -> None:
    settings = Settings.from_environ({"RANK": "3", "WORLD_SIZE": "8", "STAGECOACH_SCRATCH": "/work/scratch"})
    assert (settings.rank, settings.world_size, settings.scratch_dir) == (3, 8, Path("/work/scratch"))


def test_interfaces_are_joined_by_commas() -> None:
    assert Settings.from_environ({"GLOO_SOCKET_IFNAME": "eth0,eth1"}).gloo_interfaces == ("eth0", "eth1")


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"RANK": "three"}, "environment variable RANK: expected a whole number >= 0, got 'three'"),
        (
            {"STAGECOACH_S3_ADDRESSING": "host"},
            "STAGECOACH_S3_ADDRESSING: expected one of auto, path, virtual, got 'host'",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Settings.from_environ(environ)
