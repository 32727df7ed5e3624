"""Makes a run's plan before anything runs: resolves the sources, computes every key, asks the store what is missing.

    python -m stagecoach_workflows.plan --store URL --recipe-base64 TEXT [--set TEXT] [--run ID] ..

It is the first task of the workflow. What it decides is written once to ``runs/<run id>/plan.json`` and, for the
workflow engine, as small files beside the artifacts: ``run-id``, ``train-key``, and one ``run`` or ``skip`` a task.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import logging
import platform
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stagecoach import last_words
from stagecoach.contract import exit_code_of
from stagecoach.errors import ConfigError, MissingInputError, StagecoachError, UnavailableError
from stagecoach.paths import plan_key, validate_run_id
from stagecoach.plan_file import Plan, plan_bytes, read_plan
from stagecoach.recipe.download import DownloadModelConfig, ResolvedFile
from stagecoach.recipe.load import read_recipe
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import HubSource
from stagecoach.redaction import log_to_stderr
from stagecoach.settings import Settings
from stagecoach.source_identity import HubListing
from stagecoach.storage.base import ObjectStore
from stagecoach.storage.open import open_store
from stagecoach_workflows.decisions import candidates, decide, decide_again, task_configs
from stagecoach_workflows.dimensions import model_spec, refuse_layout
from stagecoach_workflows.policy import Shape, decision_parameter
from stagecoach_workflows.run_ids import run_id_of_workflow

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

_log = logging.getLogger("stagecoach.plan")


def make_plan(recipe: Recipe, store: ObjectStore, settings: Settings, run_id: str) -> Plan:
    """Return the plan of a run that does not exist yet, without writing anything.

    Raises:
        ConfigError: A source cannot be what it is used as, the layout does not fit the model, or the store refuses access.
        MissingInputError: A source does not exist or lacks files.
        UnavailableError: The Hub or a store does not answer.
    """
    hub = HubLister(settings)
    configs = task_configs(recipe, settings, hub, store)
    tasks = decide(store, candidates(recipe, configs), recipe, settings)
    model = configs["download-model"]
    if tasks["train"].decision == "run" and isinstance(model, DownloadModelConfig):
        refuse_layout(model_spec(model, settings, hub, lambda: store), recipe)
    return Plan(
        run_id=validate_run_id(run_id),
        recipe=recipe.model_dump(mode="json"),
        tasks=tasks,
        created_unix_seconds=round(time.time(), 3),
        versions={"stagecoach": version("stagecoach"), "python": platform.python_version()},
    )


def plan_run(recipe: Recipe, store: ObjectStore, settings: Settings, run_id: str) -> Plan:
    """Return the run's plan: the one that is there already, or a new one, written once.

    Of one that is there, tasks run as well whose output has been deleted since; what is stored does not change.

    Raises:
        ConfigError: The run exists with another recipe.
    """
    existing = _existing(store, run_id)
    if existing is None:
        plan = make_plan(recipe, store, settings, run_id)
        if store.put_if_absent(plan_key(run_id), plan_bytes(plan), content_type="application/json"):
            return decide_again(store, plan)  # gc spares what a stored plan names, but not what it named a moment ago
        existing = read_plan(store, run_id)
    if existing.recipe != recipe.model_dump(mode="json"):
        raise ConfigError(
            f"run {run_id}: exists with another recipe ({_first_difference(existing.recipe, recipe)});"
            " leave out --run for a new run, or use the old recipe"
        )
    return decide_again(store, existing)


def decode_recipe(text: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that a workflow carries as base64, with further settings laid over it.

    Raises:
        ConfigError: It is not base64 of a recipe, or a setting changes what the workflow was built for.
    """
    try:
        recipe_text = base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"--recipe-base64: expected base64 of a recipe, got {text[:40]!r}") from error
    recipe = read_recipe(recipe_text, "recipe", overrides)
    if overrides:
        built_for, wanted = Shape.of(read_recipe(recipe_text, "recipe")), Shape.of(recipe)
        changed = [name for name in built_for.as_dict() if built_for.as_dict()[name] != wanted.as_dict()[name]]
        if changed:
            raise ConfigError(
                f"set {' '.join(overrides)}: changes {', '.join(changed)}, for which this workflow template was built;"
                " render a template of its own for such a recipe, or use `stagecoach submit RECIPE --set ..`"
            )
    return recipe


def split_settings(text: str) -> list[str]:
    """Return the ``PATH=VALUE`` settings of one text, which stand apart by spaces; quotes keep a value together.

    Raises:
        ConfigError: Unbalanced quotes, or something that is no setting.
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set {text[:120]!r}: {error}; write PATH=VALUE, quoted where a value has spaces") from error
    for part in parts:
        if "=" not in part or "{{" in part:
            raise ConfigError(f"set {part[:120]!r}: expected PATH=VALUE, such as train.seed=7")
    return parts


class HubLister:
    """Asks the Hub what a revision stands for and which files it has, once a repository."""

    def __init__(self, settings: Settings) -> None:
        """Keep token and endpoint."""
        self._settings = settings
        self._known: dict[tuple[str, str, str], HubListing] = {}

    def __call__(self, source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
        """Return commit and files of a repository.

        Raises:
            MissingInputError: There is no such repository or revision, or the token may not see it.
            UnavailableError: The Hub does not answer.
        """
        key = (repo_type, source.repo, source.revision)
        if key not in self._known:
            self._known[key] = self._ask(source, repo_type)
        return self._known[key]

    def _ask(self, source: HubSource, repo_type: Literal["model", "dataset"]) -> HubListing:
        import httpx2
        from huggingface_hub import HfApi, RepoFile
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        where = f"Hub {repo_type} {source.repo} at {source.revision}"
        if self._settings.hub_offline:
            raise UnavailableError(
                f"{where}: HF_HUB_OFFLINE is set, but a branch must be turned into a commit; unset it"
            )
        api = HfApi(endpoint=self._settings.hub_endpoint, token=self._settings.hub_token)
        try:
            info: Any = api.repo_info(source.repo, revision=source.revision, repo_type=repo_type)
            files: dict[str, RepoFile] = {}
            with suppress(EntryNotFoundError):  # there is nothing at this commit, so nothing is found
                tree = api.list_repo_tree(source.repo, recursive=True, revision=info.sha, repo_type=repo_type)
                files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise MissingInputError(
                f"{where}: there is no such repository or revision, or HF_TOKEN may not read it; correct the source"
            ) from error
        except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
            raise _hub_error(where, error) from error
        card: Any = getattr(info, "card_data", None)
        configs = (card.get("configs") or ()) if card is not None else ()
        return HubListing(
            commit=str(info.sha),
            paths=list(files),
            identify=lambda path: _resolved_file(files[path]),
            card_configs=tuple(configs),
        )

    def read_file(self, source: HubSource, commit: str, path: str) -> str:
        """Return a small text file of a model repository.

        Raises:
            MissingInputError: It is not there.
            UnavailableError: The Hub does not answer.
        """
        import httpx2
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        where = f"Hub model {source.repo} at {commit[:12]}: {path}"
        try:
            with tempfile.TemporaryDirectory(prefix="stagecoach-") as folder:
                file = hf_hub_download(
                    source.repo,
                    path,
                    revision=commit,
                    local_dir=folder,
                    endpoint=self._settings.hub_endpoint,
                    token=self._settings.hub_token,
                )
                return Path(file).read_text(encoding="utf-8")
        except EntryNotFoundError as error:
            raise MissingInputError(f"{where}: there is no such file") from error
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            raise _hub_error(where, error) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan a run from the command line and return the exit code."""
    log_to_stderr(logging.INFO, "%(message)s")
    flags = _parser().parse_args(arguments)
    try:
        settings = Settings.from_environ()
        recipe = decode_recipe(flags.recipe_base64, split_settings(flags.set))
        if flags.runner == "argo":
            _refuse_directories(recipe)
        run_id = flags.run or run_id_of_workflow(flags.workflow, flags.created)
        plan = plan_run(recipe, open_store(flags.store, settings), settings, run_id)
        if settings.artifacts_dir is not None:
            write_outputs(plan, settings.artifacts_dir)
        for task in plan.tasks.values():
            _log.info("%-4s %-28s %s", task.decision, task.task, task.reason)
    except Exception as error:
        code, sentence = exit_code_of(error)
        _log.error("%s", sentence)
        last_words.leave(sentence)
        return code
    return 0


def write_outputs(plan: Plan, folder: Path) -> None:
    """Write what the workflow reads: one small file for each output parameter, and the plan itself."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, str] = {decision_parameter(task.task): task.decision for task in plan.tasks.values()}
    values |= {"run-id": plan.run_id, "train-key": plan.tasks["train"].key}
    for name, value in values.items():
        (folder / name).write_text(value, encoding="utf-8")
    (folder / "plan.json").write_text(plan.model_dump_json(indent=1), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stagecoach_workflows.plan", description="Plans a run.")
    parser.add_argument("--store", required=True, metavar="URL", help="where everything is kept")
    parser.add_argument("--recipe-base64", required=True, metavar="TEXT", help="the recipe, JSON or YAML, in base64")
    parser.add_argument(
        "--set", default="", metavar="TEXT", help="settings PATH=VALUE over the recipe, apart by spaces"
    )
    parser.add_argument("--run", default="", metavar="ID", help="run id; made from --workflow and --created without it")
    parser.add_argument("--workflow", default="run", metavar="NAME", help="name of the workflow")
    parser.add_argument("--created", type=float, default=0.0, metavar="SECONDS", help="unix time the workflow was made")
    parser.add_argument(
        "--runner", default="local", choices=("local", "docker", "slurm", "argo"), help="what runs the stages"
    )
    return parser


def _refuse_directories(recipe: Recipe) -> None:
    places: Mapping[str, Any] = {
        "model.source": recipe.model.source,
        "model.tokenizer": recipe.model.tokenizer,
        **{f"data.sources.{index}.source": item.source for index, item in enumerate(recipe.data.sources)},
    }
    for where, source in places.items():
        if source is not None and source.kind == "directory":
            raise ConfigError(
                f"{where}: a directory ({source.path}) is not there in a pod; put the files into S3 or on the Hub"
            )


def _existing(store: ObjectStore, run_id: str) -> Plan | None:
    return read_plan(store, run_id) if store.head(plan_key(validate_run_id(run_id))) is not None else None


def _first_difference(existing: Mapping[str, Any], recipe: Recipe) -> str:
    left, right = _leaves("", existing), _leaves("", recipe.model_dump(mode="json"))
    name = next(name for name in sorted({*left, *right}) if left.get(name) != right.get(name))
    return f"{name}: {left.get(name)!r} there, {right.get(name)!r} here"


def _leaves(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: leaf for key, part in value.items() for name, leaf in _leaves(f"{prefix}{key}.", part).items()}
    return {prefix.rstrip("."): value}


def _hub_error(where: str, error: Exception) -> StagecoachError:
    """Return what a failed request to the Hub means: a right that is missing, or something that may pass."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ConfigError(
            f"{where}: the Hub answers {status}: accept the repository's terms and set HF_TOKEN to a token that may read it"
        )
    answer = f"does not answer ({type(error).__name__})" if status is None else f"answers {status}"
    return UnavailableError(f"{where}: the Hub {answer}; try again")


def _resolved_file(file: RepoFile) -> ResolvedFile:
    lfs = file.lfs
    return ResolvedFile(
        path=file.path,
        size_bytes=file.size,
        sha256=lfs.sha256 if lfs is not None else None,
        git_blob_sha1=file.blob_id if lfs is None else None,
    )


if __name__ == "__main__":
    raise SystemExit(main())
