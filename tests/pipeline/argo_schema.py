"""Validates workflow documents against Argo's own full CRDs, with every field that the schema does not know forbidden."""

from __future__ import annotations

import copy
import functools
import gzip
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CRDS = Path(__file__).resolve().parents[3] / "shared/data/argo-crds"
VERSIONS = sorted(folder.name for folder in CRDS.iterdir()) if CRDS.is_dir() else ["none"]
_FILES = {
    "WorkflowTemplate": "workflowtemplates.yaml.gz",
    "Workflow": "workflows.yaml.gz",
    "CronWorkflow": "cronworkflows.yaml.gz",
}


def problems(document: dict[str, Any], version: str) -> list[str]:
    """Every violation, as ``path: message``."""
    validator = jsonschema.Draft202012Validator(_schema(document["kind"], version))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@functools.cache
def _schema(kind: str, version: str) -> dict[str, Any]:
    file = CRDS / version / _FILES[kind]
    if not file.is_file():
        pytest.skip("needs Argo's CRDs in ../shared/data/argo-crds")
    crd = yaml.load(gzip.decompress(file.read_bytes()), Loader=yaml.CSafeLoader)
    schema = copy.deepcopy(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    _forbid_unknown(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return dict(schema)


def _forbid_unknown(schema: Any) -> None:
    """Close every object, and let Kubernetes' own extensions mean what they mean there."""
    if isinstance(schema, list):
        for item in schema:
            _forbid_unknown(item)
        return
    if not isinstance(schema, dict):
        return
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and "additionalProperties" not in schema and not keeps_unknown:
        schema["additionalProperties"] = False
    for name in ("properties", "items", "additionalProperties", "anyOf", "allOf"):
        child = schema.get(name)
        if name == "properties" and isinstance(child, dict):
            for value in child.values():
                _forbid_unknown(value)
        else:
            _forbid_unknown(child)
