"""Training on from an earlier result: a release, or an export by its folder, as the recipe's model.

    night 1   model: base          data A   -> export 1, released
    night 2   model: release:chat  data B   -> starts from export 1 -> export 2, released
    night 3   model: release:chat  data B   -> starting from export 2 would train on B again: nothing has changed, no stage runs

So a release whose export is exactly what this recipe makes, from today's data and from the model that the export itself
was made from, is not trained on: the plan then names that export's own tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stagecoach import source_files
from stagecoach.errors import ConfigError
from stagecoach.manifest import Manifest, read_manifest
from stagecoach.outputs import open_input
from stagecoach.recipe.base import Section
from stagecoach.recipe.download import DownloadModelConfig, DownloadTokenizerConfig, ResolvedFile
from stagecoach.recipe.recipe import Recipe
from stagecoach.recipe.source import ExportSource, ReleaseSource
from stagecoach.releases import released_export
from stagecoach.storage.base import ObjectStore

MODEL_TASK, TOKENIZER_TASK = "download-model", "download-tokenizer"


def warm_configs(recipe: Recipe, store: ObjectStore | None) -> dict[str, Section]:
    """Return the download configs of the recipe's model and of its tokenizer where they come from an export, else {}.

    Raises:
        ConfigError: No store was given.
        MissingInputError: There is no such release or export.
        CorruptObjectError: The release's export is not the one that was released.
    """
    source = recipe.model.source
    if not isinstance(source, ReleaseSource | ExportSource):
        return {}
    if store is None:
        raise ConfigError(f"model.source of kind {source.kind}: lies in the store; give --store")
    if isinstance(source, ReleaseSource):
        source = ExportSource(export=released_export(store, source.name), release=source.name)
    manifest = open_input(store, source.export, Path()).manifest
    paths = sorted(manifest.objects)
    origin = f"{store.url.rstrip('/')}/{source.export}"
    configs: dict[str, Section] = {
        MODEL_TASK: DownloadModelConfig(
            source=source,
            files=_resolve(manifest, source_files.model_files(paths, origin)),
            documents=_resolve(manifest, source_files.document_files(paths)),
        )
    }
    if recipe.model.tokenizer is None:
        files = _resolve(manifest, source_files.tokenizer_files(paths, origin))
        configs[TOKENIZER_TASK] = DownloadTokenizerConfig(
            source=source, files=files, chat_format=recipe.model.chat_format
        )
    return configs


def without_change(
    recipe: Recipe,
    configs: Mapping[str, Section],
    store: ObjectStore | None,
    export_of: Callable[[Mapping[str, Section]], str],
) -> Mapping[str, Section]:
    """Return the configs, or those that the release was made with where they make that very release.

    Args:
        recipe: The recipe.
        configs: Of all tasks; the model comes from the release's export.
        store: Where the release lies.
        export_of: Returns the folder of the export that configs lead to.
    """
    model = configs[MODEL_TASK]
    if (
        not isinstance(recipe.model.source, ReleaseSource)
        or store is None
        or not isinstance(model, DownloadModelConfig)
    ):
        return configs
    if not isinstance(model.source, ExportSource):
        return configs
    own = _made_with(recipe, model.source.export, store)
    return {**configs, **own} if own and export_of({**configs, **own}) == model.source.export else configs


def _made_with(recipe: Recipe, export: str, store: ObjectStore) -> dict[str, Section]:
    """Return the download configs of an export's own model and tokenizer, {} if their manifests are gone."""
    exported = read_manifest(store, export)
    native = read_manifest(store, exported.inputs.get("native", "")) if exported is not None else None
    if native is None:
        return {}
    model, tokenizer = (read_manifest(store, native.inputs.get(name, "")) for name in ("model", "tokenizer"))
    if model is None or tokenizer is None:
        return {}
    configs: dict[str, Section] = {MODEL_TASK: DownloadModelConfig.model_validate(model.config)}
    if recipe.model.tokenizer is None:
        values = {**tokenizer.config, "chat_format": recipe.model.chat_format}
        configs[TOKENIZER_TASK] = DownloadTokenizerConfig.model_validate(values)
    return configs


def _resolve(manifest: Manifest, names: list[str]) -> tuple[ResolvedFile, ...]:
    entries = ((name, manifest.objects[name]) for name in names)
    return tuple(ResolvedFile(path=name, size_bytes=entry.size_bytes, sha256=entry.sha256) for name, entry in entries)
