"""Every form of address opens the store it means, and every other text is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stagecoach.errors import ConfigError
from stagecoach.settings import Settings
from stagecoach.storage.local import LocalStore
from stagecoach.storage.memory import MemoryStore
from stagecoach.storage.open import open_store, split_s3_url


def test_a_path_and_a_file_address_open_the_same_directory(tmp_path: Path) -> None:
    for address in (str(tmp_path), f"file://{tmp_path}", f"file://localhost{tmp_path}", f"{tmp_path}/"):
        store = open_store(address, Settings())
        assert isinstance(store, LocalStore)
        assert store.url == f"file://{tmp_path}"


def test_a_relative_path_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("a/b", Settings()).url == f"file://{tmp_path}/a/b"


def test_percent_signs_of_a_file_address_are_decoded() -> None:
    assert open_store("file:///a%20b", Settings()).url == "file:///a b"


def test_a_memory_store_is_found_again_by_its_name() -> None:
    open_store("memory://test-open", Settings()).put("a", b"1")
    again = open_store("memory://test-open", Settings())
    assert isinstance(again, MemoryStore)
    assert again.get("a") == b"1"
    assert open_store("memory://test-open-2", Settings()).head("a") is None


def test_an_s3_address_names_bucket_and_prefix() -> None:
    assert split_s3_url("s3://bucket") == ("bucket", "")
    assert split_s3_url("s3://bucket/") == ("bucket", "")
    assert split_s3_url("s3://my.bucket-1/some/prefix/") == ("my.bucket-1", "some/prefix")
    assert open_store("s3://bucket/p/", Settings()).url == "s3://bucket/p"


@pytest.mark.parametrize(
    "address",
    ["", " ", "http://x/y", "gs://bucket", "s3:///prefix", "s3://b", "s3://key:secret@bucket/p", "s3://bucket/../x",
     "s3://bucket/a//b", "file://host/path", "file://", "s3://bu cket", "s3:/bucket", "file:x", "s3://bucket/x?sig=secret"],
)  # fmt: skip
def test_any_other_text_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected") as caught:
        open_store(address, Settings())
    assert "secret" not in str(caught.value)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    for address in (str(tmp_path / "x"), f"file://{tmp_path}/x"):
        with pytest.raises(ConfigError, match="is a file"):
            open_store(address, Settings())


def test_a_directory_store_never_imports_boto3(tmp_path: Path) -> None:
    code = (
        "import sys; from stagecoach.storage.open import open_store; from stagecoach.settings import Settings;"
        "open_store(sys.argv[1], Settings()).put('a', b''); sys.exit({'boto3', 'botocore'} & set(sys.modules) != set())"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
