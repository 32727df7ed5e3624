"""What an error of boto3 or an answer of an S3 server means: whether a retry may help, and the sentence for people.

Errors are told apart by the names of their classes, so that nothing here imports boto3. A test walks all classes of
``botocore.exceptions`` and fails on one that has no place below.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from stagecoach.errors import (
    ConfigError,
    CorruptObjectError,
    ObjectMissing,
    StagecoachError,
    StoreDenied,
    StoreUnavailable,
)


class Trouble(Enum):
    """What kind of trouble an error means."""

    TRANSIENT = "the store fails for a moment: a retry may help"
    UNREACHABLE = "no connection comes about: a retry may help, but a wrong address is more likely"
    DENIED = "the store knows who asks and refuses"
    CREDENTIALS = "there are no usable credentials"
    CONFIGURATION = "region, endpoint, bucket or an option is wrong"
    MISSING = "there is no such object"
    CHANGED = "the object is not the one that it was a moment ago"
    TAKEN = "a conditional put found the key taken"
    CONFLICT = "two conditional puts met; the server asks to look again"
    FULL = "the store has no room"
    BUG = "Stagecoach or boto3 is wrong"


_BY_CLASS: dict[str, Trouble] = {
    **dict.fromkeys(
        (
            "ChecksumError",
            "ConnectTimeoutError",
            "ConnectionError",
            "CredentialRetrievalError",
            "FlexibleChecksumError",
            "HTTPClientError",
            "IncompleteRead",
            "IncompleteReadError",
            "MetadataRetrievalError",
            "ProtocolError",
            "ResponseParserError",
            "ResponseStreamingError",
        ),
        Trouble.TRANSIENT,
    ),
    **dict.fromkeys(("EndpointConnectionError", "ProxyConnectionError"), Trouble.UNREACHABLE),
    **dict.fromkeys(
        (
            "ConfigNotFound",
            "LoginError",
            "NoAuthTokenError",
            "NoCredentialsError",
            "PartialCredentialsError",
            "ProfileNotFound",
            "RefreshWithMFAUnsupportedError",
            "SSOError",
            "TokenRetrievalError",
            "UnknownCredentialError",
            "UnknownTokenProviderError",
        ),
        Trouble.CREDENTIALS,
    ),
    **dict.fromkeys(
        (
            "ApiVersionNotFoundError",
            "BaseEndpointResolverError",
            "CapacityNotAvailableError",
            "ConfigParseError",
            "EndpointProviderError",
            "InvalidChecksumConfigError",
            "InvalidConfigError",
            "InvalidDNSNameError",
            "InvalidDefaultsMode",
            "InvalidEndpointConfigurationError",
            "InvalidEndpointDiscoveryConfigurationError",
            "InvalidExpressionError",
            "InvalidHostLabelError",
            "InvalidIMDSEndpointError",
            "InvalidIMDSEndpointModeError",
            "InvalidProxiesConfigError",
            "InvalidRegionError",
            "InvalidRetryConfigurationError",
            "InvalidRetryModeError",
            "InvalidS3AddressingStyleError",
            "InvalidS3UsEast1RegionalEndpointConfigError",
            "InvalidSTSRegionalEndpointsConfigError",
            "MD5UnavailableError",
            "MissingDependencyException",
            "SSLError",
            "ServiceNotInRegionError",
            "UnknownRegionError",
            "UnknownSignatureVersionError",
            "UnsupportedOutpostResourceError",
            "UnsupportedS3AccesspointConfigurationError",
            "UnsupportedS3ArnError",
            "UnsupportedS3ConfigurationError",
            "UnsupportedS3ControlArnError",
            "UnsupportedS3ControlConfigurationError",
            "UnsupportedSignatureVersionError",
        ),
        Trouble.CONFIGURATION,
    ),
    **dict.fromkeys(
        (
            "AliasConflictParameterError",
            "AwsChunkedWrapperError",
            "DataNotFoundError",
            "EventStreamError",
            "MissingParametersError",
            "OperationNotPageableError",
            "PaginationError",
            "ParamValidationError",
            "StubResponseError",
            "UndefinedModelAttributeError",
            "UnknownClientMethodError",
            "UnknownServiceStyle",
            "UnseekableStreamError",
            "UnsupportedServiceProtocolsError",
            "ValidationError",
            "WaiterConfigError",
            "WaiterError",
        ),
        Trouble.BUG,
    ),
}

_BY_CODE: dict[str, Trouble] = {
    **dict.fromkeys(
        (
            "BadDigest",
            "IncompleteBody",
            "InternalError",
            "OperationAborted",
            "RequestTimeTooSkewed",
            "RequestTimeout",
            "RequestTimeoutException",
            "ServiceUnavailable",
            "SlowDown",
            "SlowDownRead",
            "SlowDownWrite",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
        ),
        Trouble.TRANSIENT,
    ),
    **dict.fromkeys(
        ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"),
        Trouble.CREDENTIALS,
    ),
    **dict.fromkeys(  # of STS, which is asked first where a role is assumed
        ("ExpiredTokenException", "IDPRejectedClaim", "InvalidClientTokenId", "InvalidIdentityToken"),
        Trouble.CREDENTIALS,
    ),
    "IDPCommunicationError": Trouble.TRANSIENT,
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp"), Trouble.DENIED),
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion", "NotFound"), Trouble.MISSING),
    **dict.fromkeys(("InvalidRange",), Trouble.CHANGED),
    **dict.fromkeys(("PreconditionFailed",), Trouble.TAKEN),
    **dict.fromkeys(("ConditionalRequestConflict",), Trouble.CONFLICT),
    **dict.fromkeys(("InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"), Trouble.FULL),
}

_BY_STATUS: dict[int, Trouble] = {
    401: Trouble.CREDENTIALS,
    403: Trouble.DENIED,
    404: Trouble.MISSING,
    408: Trouble.TRANSIENT,
    409: Trouble.CONFLICT,
    412: Trouble.TAKEN,
    416: Trouble.CHANGED,
    425: Trouble.TRANSIENT,
    429: Trouble.TRANSIENT,
    501: Trouble.CONFIGURATION,
    507: Trouble.FULL,
}


def trouble_of(error: BaseException) -> Trouble | None:
    """Return what an error means, None if it is neither boto3's nor an answer of the server."""
    trouble = getattr(error, "trouble", None)
    if isinstance(trouble, Trouble):
        return trouble
    if isinstance(getattr(error, "response", None), dict):
        return _trouble_of_answer(code_of(error), status_of(error))
    for parent in type(error).__mro__:
        # Python's own ConnectionError has a namesake there
        if parent.__module__.startswith(("botocore.", "urllib3.")) and parent.__name__ in _BY_CLASS:
            return _BY_CLASS[parent.__name__]
    return None


def code_of(error: BaseException) -> str:
    """Return the S3 code of an answer (``NoSuchKey``), empty if there is none."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an answer, 0 if there is none."""
    response: Any = getattr(error, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    return trouble_of(error) in (Trouble.TRANSIENT, Trouble.UNREACHABLE)


def translate(error: Exception, url: str, key: str, endpoint: str) -> StagecoachError:
    """Return the error of ours that says what happened and what to do.

    Args:
        error: One of boto3's.
        url: The store.
        key: The object, or the prefix that was listed.
        endpoint: Where requests go, for sentences about connections.
    """
    trouble = trouble_of(error)
    address = f"{url}/{key}" if key else url
    said = _said(error)
    if code_of(error) == "NoSuchBucket":
        return ConfigError(f"{url}: the store at {endpoint} has no such bucket; make it or correct --store")
    if code_of(error) == "RequestTimeTooSkewed":
        return StoreUnavailable(url, key, "the clocks of this machine and of the store differ too much; set this one's")
    if trouble is Trouble.UNREACHABLE:
        return StoreUnavailable(url, key, f"cannot reach {endpoint} ({said}); check endpoint and network")
    if trouble is Trouble.TRANSIENT or trouble is Trouble.CONFLICT:
        return StoreUnavailable(url, key, f"the store at {endpoint} fails again and again ({said}); run again later")
    if trouble is Trouble.FULL:
        return StoreUnavailable(url, key, f"the store has no room left ({said}); free some (stagecoach gc), run again")
    if trouble is Trouble.DENIED:
        return StoreDenied(url, key, f"access denied ({said}); check the permissions of these credentials")
    if trouble is Trouble.CREDENTIALS:
        return StoreDenied(url, key, f"no usable credentials ({said}); set AWS_ACCESS_KEY_ID .., a profile or a role")
    if trouble is Trouble.MISSING:
        return ObjectMissing(url, key, "no such object")
    if trouble in (Trouble.CHANGED, Trouble.TAKEN):
        return CorruptObjectError(f"{address}: the object changed while it was read ({said}); see who writes there")
    if trouble is Trouble.CONFIGURATION:
        return ConfigError(f"{address}: {said}; check endpoint {endpoint}, region, bucket and addressing")
    return StagecoachError(f"{address}: unexpected {type(error).__name__}: {said}")


def _trouble_of_answer(code: str, status: int) -> Trouble:
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if code.isdecimal() and int(code) in _BY_STATUS:
        return _BY_STATUS[int(code)]
    return Trouble.TRANSIENT if status >= 500 else Trouble.CONFIGURATION


def _said(error: Exception) -> str:
    """What the server or the library said, on one line."""
    status = status_of(error)
    if not status:
        return " ".join(str(error).split())[:300]
    details: Any = getattr(error, "response", {}).get("Error", {})
    message = " ".join(str(details.get("Message", "")).split())[:200]
    return f"{code_of(error)}, HTTP {status}{': ' + message if message else ''}"
