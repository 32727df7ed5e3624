"""Says in one sentence what the operating system refused: a full disk, a read-only folder, a file in a folder's place.

Such an error comes out of any line that touches a file. It is nobody's bug, so it gets a sentence and an exit code of
its own where errors leave the program.
"""

from __future__ import annotations

import errno

from stagecoach.errors import ConfigError, StagecoachError, UnavailableError
from stagecoach.storage.transfer import DISK_FULL_ERRNOS

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def refusal_of_the_system(error: BaseException) -> StagecoachError | None:
    """Return the error that a user should read instead, or None if this is none of the system's refusals.

    Examples:
        >>> print(refusal_of_the_system(PermissionError(13, "Permission denied", "/mnt/run")))
        /mnt/run: the system refuses it (Permission denied); choose another folder, or mend its owner and mode
    """
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL_ERRNOS:
        place = error.filename or "the scratch folder"
        return UnavailableError(f"no space left on the disk that holds {place}; free some and run again")
    if error.errno in _REFUSED and error.filename is not None:
        return ConfigError(
            f"{error.filename}: the system refuses it ({error.strerror}); choose another folder, or mend its owner and"
            " mode"
        )
    return None
