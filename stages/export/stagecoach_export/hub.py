"""Pushes a finished export to a repository of the Hugging Face Hub; the only module of this stage that talks
to the Hub.

Large files go up one by one and then everything becomes one commit, so the branch never shows half a model.
What a push that was cut has uploaded is not uploaded again. Weights of an earlier model that the new one does
not replace are deleted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stagecoach.errors import ConfigError, StagecoachError, UnavailableError
from stagecoach.outputs import Input
from stagecoach.recipe.export import PushConfig
from stagecoach.settings import HUB_ADDRESS, Settings

_log = logging.getLogger("stagecoach.export")

_WEIGHTS = re.compile(r"(model|pytorch_model)[^/]*\.(safetensors|bin)(\.index\.json)?")
_BUSY = (408, 425, 429)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push has done."""

    repo: str
    branch: str
    commit: str
    """Commit that the branch shows now."""
    url: str
    """Address of that commit."""


def push(config: PushConfig, exported: Input, settings: Settings, note: str) -> Pushed:
    """Make the branch of the repository show exactly this export; other files in it are left alone.

    Args:
        config: Where to.
        exported: The finished export.
        settings: Hub address and token.
        note: Message of the commit where the config has none.

    Raises:
        ConfigError: No token, no such repository, or no right to write to it.
        UnavailableError: The Hub does not answer; what was uploaded stays, a retry goes on.
    """
    if settings.hub_offline:
        raise ConfigError(
            f"push to {config.repo}: HF_HUB_OFFLINE forbids to ask the Hub; unset it, or remove export.push"
        )
    if not settings.hub_token:
        raise ConfigError(f"push to {config.repo}: expected a token that may write in HF_TOKEN, got none")
    api = HfApi(endpoint=settings.hub_endpoint, token=settings.hub_token)
    with _errors(config.repo), ExitStack() as opened:
        repo = api.create_repo(config.repo, private=config.private, exist_ok=True).repo_id
        if config.branch != "main":
            api.create_branch(repo, branch=config.branch, exist_ok=True)
        additions = [CommitOperationAdd(name, _content(exported, name, settings, opened)) for name in exported.names()]
        for at, addition in enumerate(additions):
            api.preupload_lfs_files(repo, additions=[addition], revision=config.branch, free_memory=False)
            _log.info("push to %s: %s (%d of %d)", repo, addition.path_in_repo, at + 1, len(additions))
        commit = api.create_commit(
            repo,
            operations=[*_stale(api, repo, config.branch, exported), *additions],
            commit_message=config.commit_message or note,
            revision=config.branch,
        )
    return Pushed(repo=repo, branch=config.branch, commit=commit.oid, url=str(commit.commit_url))


def _content(exported: Input, name: str, settings: Settings, opened: ExitStack) -> Any:
    """Return a file in the form that makes the client speak the protocol which the server knows.

    The client sends paths by Xet wherever it is installed and streams by LFS; servers other than the Hub
    speak LFS.
    """
    path = exported.path(name)
    if settings.hub_address == HUB_ADDRESS:
        return path
    return opened.enter_context(open(path, "rb"))


def _stale(api: HfApi, repo: str, branch: str, exported: Input) -> list[CommitOperationDelete]:
    names = set(exported.names())
    present = [entry.path for entry in api.list_repo_tree(repo, revision=branch)]
    return [CommitOperationDelete(path) for path in present if _WEIGHTS.fullmatch(path) and path not in names]


@contextmanager
def _errors(repo: str) -> Iterator[None]:
    """Turn what the client raises into a sentence and an exit code."""
    try:
        yield
    except StagecoachError:
        raise
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"push to {repo}: the Hub's client is set to offline; unset HF_HUB_OFFLINE") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(f"push to {repo}: the Hub knows no such repository, or the token may not see it") from error
    except HfHubHTTPError as error:
        raise _of_status(repo, error) from error
    except (httpx2.TransportError, RuntimeError, OSError) as error:
        # The client wraps what breaks an upload in a RuntimeError.
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
        if cause is not None:
            raise _of_status(repo, cause) from error
        raise UnavailableError(f"push to {repo}: the connection broke ({error}); run it again to go on") from error


def _of_status(repo: str, error: HfHubHTTPError) -> StagecoachError:
    status = error.response.status_code
    if status in (401, 403):
        return ConfigError(f"push to {repo}: the Hub answers {status}: set HF_TOKEN to a token that may write there")
    if status in _BUSY or status >= 500:
        return UnavailableError(f"push to {repo}: the Hub answers {status}; run it again to go on")
    return ConfigError(f"push to {repo}: the Hub answers {status}: {str(error).splitlines()[0]}")
