"""Takes secrets out of what logs, records and people see: errors of other libraries quote addresses and headers."""

from __future__ import annotations

import logging
import re
import sys
import traceback

from stagecoach.settings import secret_values

HIDDEN = "***"
_PARAMETERS = (
    r"X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature|sig|signature|(?:access|auth|refresh|session|security)?[_-]?token"
    r"|(?:api|access|secret)?[_-]?key|passw(?:or)?d|pwd|secret|auth|credential"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(://)[^\s/@'\"]+@"), rf"\1{HIDDEN}@"),  # user:password of an address
    (re.compile(rf"([?&;](?:{_PARAMETERS})=)[^&\s'\"<>]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(\bSignature=)[0-9a-f]{32,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(\bhooks\.slack\.com/)[\w/-]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|xox[a-z]-[\w-]{10,})"), HIDDEN),
)


def without_secrets(text: str) -> str:
    """Return ``text`` with ``***`` in place of credentials: values of secret variables of this process, the user part
    of addresses, signatures and tokens in queries, authorization headers, and tokens of known shapes.
    """
    for secret in secret_values():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class SafeFormatter(logging.Formatter):
    """Formats log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return without_secrets(super().format(record))


def log_to_stderr(level: int, form: str) -> None:
    """Send every log line of this process to standard error, without secrets; replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(SafeFormatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False  # an error while logging would show the line's arguments as they are


def show_traceback(error: BaseException) -> None:
    """Write the traceback of ``error`` to standard error, without secrets."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))
