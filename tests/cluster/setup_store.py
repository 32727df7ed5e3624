"""Makes the bucket that the cluster's tests use, in the SeaweedFS that runs beside the cluster."""

from __future__ import annotations

import time

import boto3
from botocore.exceptions import ClientError

ENDPOINT_URL = "http://10.88.0.1:8333"
BUCKET = "stagecoach"
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret"
READY_SECONDS = 30.0


def main() -> None:
    """Make the bucket unless it is there; a store that has just started needs a few seconds."""
    client = boto3.client(
        "s3",
        endpoint_url=ENDPOINT_URL,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except client.exceptions.BucketAlreadyExists:
            return
        except ClientError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()
