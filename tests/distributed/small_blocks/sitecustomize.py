"""Python imports this at its start where the folder is on its path: blocks of ``TEST_BLOCK_BYTES``, and a list of
range reads.

Every process of a training has to agree on the size of a block, its ranks too, which the launcher starts.
"""

from __future__ import annotations

import os

from stagecoach import manifest
from stagecoach.storage import s3

manifest.BLOCK_BYTES = int(os.environ["TEST_BLOCK_BYTES"])
_get_range = s3.S3Store.get_range


def _listed(self: s3.S3Store, key: str, start: int, size_bytes: int) -> bytes:
    """Read a range and write down which."""
    with open(f"{os.environ['TEST_RANGES_FILE']}-{os.environ['STAGECOACH_NODE_RANK']}", "a", encoding="utf-8") as file:
        file.write(f"{key} {start} {size_bytes}\n")
    return _get_range(self, key, start, size_bytes)


s3.S3Store.get_range = _listed  # type: ignore[method-assign]
