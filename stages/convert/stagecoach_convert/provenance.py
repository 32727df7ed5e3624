"""What the model card of an export will say about the base model: where it came from, and its licence."""

from __future__ import annotations

import re

from stagecoach.outputs import Input

MODEL_CARD = "README.md"

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_LICENSE = re.compile(r"""^license:[ \t]*["']?([A-Za-z0-9][A-Za-z0-9._-]{0,63})["']?[ \t]*$""", re.MULTILINE)
_RECORDED = ("origin", "repo", "commit")


def base_model(model: Input) -> dict[str, dict[str, str] | str]:
    """Return what is known: ``{"source": {"origin", "repo", "commit"}, "license": "apache-2.0"}``, without
    unknown parts.
    """
    source = {key: model.summary[key] for key in _RECORDED if isinstance(model.summary.get(key), str)}
    found: dict[str, dict[str, str] | str] = {"source": source} if source else {}
    if MODEL_CARD in model.names():
        front = _FRONT_MATTER.match(model.read_bytes(MODEL_CARD).decode("utf-8", "replace").replace("\r\n", "\n"))
        license_line = _LICENSE.search(front[1]) if front else None
        if license_line:
            found["license"] = license_line[1].lower()
    return found
