"""Validates workflow documents against Argo's own full CRDs, with unknown fields forbidden.

The CRDs hold ten rules in CEL besides their structure. Each is written here once more in Python, under its own text, so
that a rule that a new version of Argo adds is a failure until it is written too.
"""

from __future__ import annotations

import copy
import functools
import gzip
from collections.abc import Callable, Iterator
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


_LOCATIONS = ("s3", "git", "http", "artifactory", "hdfs", "raw", "oss", "gcs", "azure", "plugin")
_TYPES = ("container", "script", "dag", "steps", "resource", "suspend", "containerSet", "data", "http", "plugin")


def _count(names: tuple[str, ...], variable: str) -> str:
    """The CEL text that counts how many of these fields are set."""
    return " + ".join(f"(has({variable}.{name}) ? 1 : 0)" for name in names)


def _is_leaf(template: dict[str, Any]) -> bool:
    return not {"steps", "dag"} & set(template)


CEL: dict[str, Callable[[Any], bool]] = {
    f"{_count(_LOCATIONS, 'self')} <= 1": lambda it: len(set(_LOCATIONS) & set(it)) <= 1,
    "!has(self.realtime) || !self.realtime || !self.value.contains('resourcesDuration.')": lambda it: (
        not it.get("realtime") or "resourcesDuration." not in it["value"]
    ),
    "!has(self.depends) || !has(self.dependencies)": lambda it: not {"depends", "dependencies"} <= set(it),
    "!has(self.depends) || !has(self.continueOn)": lambda it: not {"depends", "continueOn"} <= set(it),
    "!(has(self.depends) || has(self.dependencies)) || !self.name.matches('^[0-9]')": lambda it: (
        not {"depends", "dependencies"} & set(it) or not it["name"][:1].isdigit()
    ),
    "!(has(self.count) && has(self.end))": lambda it: not {"count", "end"} <= set(it),
    "(has(self.manifest) && !has(self.manifestFrom)) || (!has(self.manifest) && has(self.manifestFrom))"
    " || (!has(self.manifest) && !has(self.manifestFrom))": lambda it: not {"manifest", "manifestFrom"} <= set(it),
    f"self.all(t, {_count(_TYPES, 't')} <= 1)": lambda it: all(len(set(_TYPES) & set(each)) <= 1 for each in it),
    'self.all(t, !(has(t.timeout) && t.timeout != "" && (has(t.steps) || has(t.dag))))': lambda it: all(
        not each.get("timeout") or _is_leaf(each) for each in it
    ),
    "self.all(t, !(has(t.activeDeadlineSeconds) && (has(t.steps) || has(t.dag))))": lambda it: all(
        "activeDeadlineSeconds" not in each or _is_leaf(each) for each in it
    ),
}
"""Text of a rule in the CRDs -> whether a value keeps it."""


def _check_cel(validator: Any, rules: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    for rule in rules:
        text = " ".join(rule["rule"].split())
        if text not in CEL:
            yield jsonschema.ValidationError(f"a CEL rule that the tests do not know: {text}")
        elif not CEL[text](instance):
            yield jsonschema.ValidationError(rule["message"])


_extend: Any = jsonschema.validators.extend  # carries no types
_Validator = _extend(jsonschema.Draft202012Validator, {"x-kubernetes-validations": _check_cel})


def problems(document: dict[str, Any], version: str) -> list[str]:
    """Every violation, as ``path: message``."""
    validator = _Validator(_schema(document["kind"], version))
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
