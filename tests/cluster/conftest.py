"""The cluster that the tests use: the one of KUBECONFIG, with the chart installed in STAGECOACH_NAMESPACE."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from stagecoach.settings import Settings
from tests.cluster.client import Cluster
from tests.cluster.setup_store import ACCESS_KEY, BUCKET, ENDPOINT_URL, SECRET_KEY

LONG_TRAINING = "train.steps=1600 train.save_every_steps=100 train.evaluate_every_steps=800"
"""Settings over the micro recipe: long enough to interfere, with a checkpoint every few seconds."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, or a skip where there is none."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: make cluster-up, or set KUBECONFIG")
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, os.environ.get(name, value))
        endpoint = os.environ.get("STAGECOACH_S3_ENDPOINT_URL", ENDPOINT_URL)
        settings = Settings(s3_endpoint_url=endpoint, s3_region="us-east-1", s3_addressing="path")
        yield Cluster(os.environ.get("STAGECOACH_NAMESPACE", "stagecoach"), settings)


@pytest.fixture
def store_url() -> str:
    """A place of the store that no other test uses."""
    return f"s3://{BUCKET}/test-{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster) -> dict[str, str]:
    """The exported weights of the long training that nobody interfered with: file name -> sha256."""
    url = f"s3://{BUCKET}/undisturbed-{secrets.token_hex(4)}"
    name = cluster.submit("micro", url, set=LONG_TRAINING)
    assert cluster.wait(name) == "Succeeded", cluster.nodes(name)
    return cluster.exported_weights(url)
