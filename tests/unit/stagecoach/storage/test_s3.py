"""The S3 store on a real server, with a proxy between that fails on purpose."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stagecoach.errors import ConfigError, CorruptObjectError, ObjectMissing, StoreDenied, StoreUnavailable
from stagecoach.settings import Settings
from stagecoach.storage.open import open_store
from stagecoach.storage.s3 import S3Options, S3Store
from stagecoach.storage.s3_errors import Trouble
from stagecoach.storage.s3_signature import Secrets
from stagecoach.storage.s3_wire import WireFailure
from tests.faulty_s3 import FAULT_KINDS, FaultKind, Request, fail_first, faulty_s3
from tests.seaweed import QUICK, big_file, failing

if TYPE_CHECKING:
    from tests.seaweed import SeaweedServer


class TestLargeReads:
    """Parts side by side must come out as the one object that lies there."""

    def test_bytes_are_seen_in_order_though_parts_arrive_in_any(
        self, s3_environment: SeaweedServer, tmp_path: Path
    ) -> None:
        with failing(s3_environment) as (store, proxy):
            path, digest = big_file(tmp_path, 4)
            store.put_file("big", path)
            proxy.script = fail_first(2, "slow", "GET")
            seen = hashlib.sha256()
            store.get_file("big", tmp_path / "back", on_bytes=seen.update)
            assert seen.hexdigest() == digest

    def test_an_object_that_changes_under_the_read_is_refused(
        self, s3_environment: SeaweedServer, tmp_path: Path
    ) -> None:
        with failing(s3_environment, num_threads=1) as (store, proxy):
            direct = s3_environment.store(store.url.rsplit("/", 1)[1])
            path, _ = big_file(tmp_path, 3)
            store.put_file("big", path)
            ranges = []

            def change_before_the_second_part(request: Request) -> None:
                if request.method == "GET":
                    ranges.append(request.path)
                    if len(ranges) == 2:
                        direct.put("big", path.read_bytes()[::-1])

            proxy.script = change_before_the_second_part
            with pytest.raises(CorruptObjectError, match="changed while it was read"):
                store.get_file("big", tmp_path / "back")
            assert not (tmp_path / "back").exists()


class TestConditionalPut:
    """A retry of a put that had succeeded must not be taken for somebody else's."""

    @pytest.mark.parametrize("kind", ["lost", "truncate", "garbage", "503", "refuse"])
    def test_ours_stays_ours_over_a_retry(self, s3_environment: SeaweedServer, kind: FaultKind) -> None:
        with failing(s3_environment) as (store, proxy):
            proxy.script = fail_first(2, kind, "PUT")
            assert store.put_if_absent("manifest.json", b"ours")
            assert store.get("manifest.json") == b"ours"
            assert not store.put_if_absent("manifest.json", b"ours")

    def test_the_one_who_lost_knows_it_over_a_retry(self, s3_environment: SeaweedServer) -> None:
        with failing(s3_environment) as (store, proxy):
            store.put("manifest.json", b"theirs")
            proxy.script = fail_first(1, "lost", "PUT")
            assert not store.put_if_absent("manifest.json", b"ours")
            assert store.get("manifest.json") == b"theirs"


class TestFaults:
    """What passes is tried again; what does not is one sentence."""

    @pytest.mark.parametrize("kind", FAULT_KINDS)
    def test_every_operation_survives_a_bad_moment(
        self, s3_environment: SeaweedServer, kind: FaultKind, tmp_path: Path
    ) -> None:
        with failing(s3_environment) as (store, proxy):
            path, digest = big_file(tmp_path, 2.2)

            def bad_moment() -> None:
                proxy.script = fail_first(1, kind)

            bad_moment()
            store.put("a", b"12345")
            bad_moment()
            assert store.get("a") == b"12345"
            bad_moment()
            assert store.get_range("a", 1, 3) == b"234"
            bad_moment()
            info = store.head("a")
            assert info is not None and info.size_bytes == 5
            bad_moment()
            assert [each.key for each in store.list("")] == ["a", "warm"]
            bad_moment()
            store.put_file("big", path)
            bad_moment()
            with store.create("made") as write:
                write(path.read_bytes())
            bad_moment()
            assert store.get("made") == path.read_bytes()
            bad_moment()
            store.get_file("big", tmp_path / "back")
            assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest
            bad_moment()
            store.delete(["a", "big", "made"])
            assert [each.key for each in store.list("")] == ["warm"]

    def test_a_server_that_hangs_is_given_up_and_tried_again(self, s3_environment: SeaweedServer) -> None:
        with failing(s3_environment, read_timeout_seconds=1.0) as (store, proxy):
            store.put("a", b"1")
            proxy.script = fail_first(1, "hang")
            begin = time.monotonic()
            assert store.get("a") == b"1"
            assert 0.9 < time.monotonic() - begin < 60

    def test_tries_end(self, s3_environment: SeaweedServer) -> None:
        with failing(s3_environment) as (store, proxy):
            proxy.script = lambda request: "500"
            with pytest.raises(StoreUnavailable, match=r"fails again and again .InternalError, HTTP 500: on purpose"):
                store.get("a")
            assert len(proxy.requests) == QUICK.max_tries

    def test_a_length_that_is_too_small_is_noticed_in_a_range(self, s3_environment: SeaweedServer) -> None:
        with failing(s3_environment) as (store, proxy):
            store.put("a", b"0123456789")
            proxy.script = lambda request: "too-short"
            with pytest.raises(StoreUnavailable, match="asked for bytes 2-6"):
                store.get_range("a", 2, 5)

    @pytest.mark.parametrize("operation", ["get", "head", "list", "put", "put_if_absent", "delete"])
    def test_denied_is_said_at_once(self, s3_environment: SeaweedServer, operation: str) -> None:
        with failing(s3_environment) as (store, proxy):
            proxy.script = lambda request: "403"
            calls: dict[str, Callable[[], object]] = {
                "get": lambda: store.get("a"),
                "head": lambda: store.head("a"),
                "list": lambda: list(store.list("a")),
                "put": lambda: store.put("a", b""),
                "put_if_absent": lambda: store.put_if_absent("a", b""),
                "delete": lambda: store.delete(["a"]),
            }
            with pytest.raises(StoreDenied, match="access denied") as caught:
                calls[operation]()
            assert (caught.value.url, caught.value.key) == (store.url, "a")
            assert len(proxy.requests) == 1

    def test_a_full_scratch_disk_is_named(
        self, s3_environment: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = s3_environment.store()
        store.put("a", b"12345")

        def full(*arguments: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(Exception, match="no space left on its disk") as caught:
            store.get_file("a", tmp_path / "f")
        assert getattr(caught.value, "exit_code", None) == 69
        assert list(tmp_path.glob("*f*")) == []


class TestAddress:
    """Wrong addresses and credentials are one sentence, soon."""

    def test_a_bucket_that_is_not_there(self, s3_environment: SeaweedServer) -> None:
        options = S3Options(endpoint_url=s3_environment.server.endpoint_url, addressing="path")
        store = S3Store("no-such-bucket", "", options)
        with pytest.raises(ConfigError, match=r"s3://no-such-bucket: the store at http.* has no such bucket"):
            store.get("a")
        with pytest.raises(ConfigError, match="has no such bucket"):
            list(store.list(""))

    def test_a_wrong_secret(self, s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        store = s3_environment.store()
        acts: list[Callable[[], object]] = [
            lambda: store.get("a"),
            lambda: store.head("a"),
            lambda: store.put("a", b""),
        ]
        for act in acts:
            with pytest.raises(StoreDenied) as caught:
                act()
            assert "wrong" not in str(caught.value)

    def test_no_credentials(
        self, s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StoreDenied, match="no usable credentials"):
            s3_environment.store().get("a")

    def test_a_profile_that_is_not_there(self, s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
        with pytest.raises(StoreDenied, match="no-such-profile"):
            s3_environment.store().get("a")

    def test_a_server_that_never_answers_is_given_up_within_two_seconds(self, s3_environment: SeaweedServer) -> None:
        store = S3Store("bucket", "", S3Options(endpoint_url="http://127.0.0.1:9", addressing="path"))
        begin = time.monotonic()
        acts: list[Callable[[], object]] = [lambda: store.head("a"), lambda: store.put("a", b"")]
        for act in acts:
            with pytest.raises(
                StoreUnavailable, match=r"cannot reach http://127.0.0.1:9 .*; check endpoint and network"
            ):
                act()
        assert time.monotonic() - begin < 30

    @pytest.mark.parametrize("content", [None, "not a certificate"])
    def test_a_bad_file_of_authorities(
        self, s3_environment: SeaweedServer, tmp_path: Path, content: str | None
    ) -> None:
        if content:
            (tmp_path / "ca.pem").write_text(content)
        options = S3Options(endpoint_url="https://127.0.0.1:9", ca_bundle=tmp_path / "ca.pem", addressing="path")
        with pytest.raises(ConfigError, match="STAGECOACH_S3_CA_BUNDLE"):
            S3Store("bucket", "", options).get("a")

    def test_virtual_addressing_puts_the_bucket_into_the_host(self, s3_environment: SeaweedServer) -> None:
        options = S3Options(endpoint_url="http://store.example:8080", addressing="virtual")
        assert (
            S3Store("my-bucket", "", options)._calls.connected().wire.target.base_url
            == "http://my-bucket.store.example:8080"
        )

    def test_aws_itself_needs_no_endpoint(self, s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STAGECOACH_S3_ENDPOINT_URL")
        wire = S3Store("my-bucket", "", S3Options(region="eu-west-1"))._calls.connected().wire
        assert wire.target.base_url == "https://my-bucket.s3.eu-west-1.amazonaws.com"
        assert wire.signer.region == "eu-west-1"

    def test_settings_become_options(self, tmp_path: Path) -> None:
        settings = Settings(
            s3_endpoint_url="http://x", s3_region="r", s3_addressing="virtual", s3_checksums="when_supported",
            s3_ca_bundle=tmp_path, s3_sse_kms_key_id="k",
        )  # fmt: skip
        options = S3Options.from_settings(settings)
        assert (options.endpoint_url, options.region, options.addressing) == ("http://x", "r", "virtual")
        assert (options.checksums, options.ca_bundle, options.sse_kms_key_id) == ("when_supported", tmp_path, "k")

    def test_the_environment_opens_the_store(self, s3_environment: SeaweedServer) -> None:
        store = open_store(f"{s3_environment.url}/t-environment", Settings.from_environ())
        store.put("a", b"1")
        assert s3_environment.store("t-environment").get("a") == b"1"


def test_a_prefix_is_a_world_of_its_own(s3_environment: SeaweedServer) -> None:
    one, other = s3_environment.store("t-world/one"), s3_environment.store("t-world/one-2")
    one.put("a", b"1")
    other.put("b", b"2")
    assert [info.key for info in one.list("")] == ["a"]
    assert [info.key for info in other.list("")] == ["b"]
    assert list(s3_environment.store("t-world").list_folders("")) == ["one-2", "one"]


def test_pages_of_a_long_listing_are_joined(s3_environment: SeaweedServer) -> None:
    store = s3_environment.store()
    names = [f"{number:04d}" for number in range(1203)]
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda name: store.put(f"many/{name}", b""), names))
    assert [info.key for info in store.list("many/")] == [f"many/{n}" for n in names]
    store.delete(f"many/{n}" for n in names)
    assert list(store.list("")) == []


def test_encryption_with_a_kms_key_is_asked_for_in_every_put(s3_environment: SeaweedServer, tmp_path: Path) -> None:
    """SeaweedFS has no KMS here, so the proxy answers; what counts is what was asked."""
    with failing(s3_environment) as (plain, proxy):
        options = replace(plain._options, sse_kms_key_id="arn:aws:kms:eu-west-1:1:key/2")
        store = S3Store(s3_environment.server.bucket, "t-kms", options)
        proxy.script = lambda request: "403"
        (tmp_path / "small").write_bytes(b"1")
        large, _ = big_file(tmp_path, 2)
        with pytest.raises(StoreDenied):
            store.put("a", b"1")
        with pytest.raises(StoreDenied):
            store.put_if_absent("a", b"1")
        for path in (tmp_path / "small", large):
            with pytest.raises(StoreDenied):
                store.put_file("a", path)
        heads = [request.head.lower() for request in proxy.requests]
    assert len(heads) == 4
    assert all("x-amz-server-side-encryption: aws:kms" in head for head in heads)
    assert all("x-amz-server-side-encryption-aws-kms-key-id: arn:aws:kms:eu-west-1:1:key/2" in head for head in heads)


def test_a_store_without_bulk_delete_gets_single_ones(s3_environment: SeaweedServer) -> None:
    with failing(s3_environment) as (store, proxy):
        for name in ("a", "b"):
            store.put(name, b"")
        proxy.script = fail_first(1, "501", "POST", "delete")
        store.delete(["a", "b", "never"])
        assert [info.key for info in store.list("")] == ["warm"]


def test_renewed_credentials_that_have_expired_are_tried_again(
    s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_environment.store(retry=QUICK)
    store.put("a", b"1")
    wire = store._calls.connected().wire
    secrets, errors = wire.signer.secrets, [WireFailure(Trouble.TRANSIENT, "still expired")]

    def renew() -> Secrets:
        if errors:
            raise errors.pop()
        return secrets()

    wire.signer.secrets = renew
    assert store.get("a") == b"1"


def test_a_session_token_is_sent(s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-a-role")
    with faulty_s3(s3_environment.server.endpoint_url, lambda request: "403") as proxy:
        store = S3Store("stagecoach", "", S3Options(endpoint_url=proxy.endpoint_url, addressing="path"))
        for act in (store.get, store.head):
            with pytest.raises(StoreDenied):
                act("a")
        assert ["token-of-a-role" in request.head for request in proxy.requests] == [True, True]


def test_a_missing_object_stays_missing_behind_all_errors(s3_environment: SeaweedServer) -> None:
    with failing(s3_environment) as (store, proxy):
        proxy.script = fail_first(1, "500")
        with pytest.raises(ObjectMissing, match="no such object"):
            store.get("nothing")
