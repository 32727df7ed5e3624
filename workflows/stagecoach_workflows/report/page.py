"""The report of a run as one static page: what it learned, what it cost, what it was made from, what the model says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from stagecoach.html_page import (
    Html,
    banner,
    bar,
    details,
    figures,
    heading,
    html,
    note,
    number,
    page,
    table,
)
from stagecoach_workflows.bucket.lineage import LineageNode
from stagecoach_workflows.bucket.runs import utc
from stagecoach_workflows.report.charts import Series, line_chart, thin
from stagecoach_workflows.report.facts import AnswerPair, RunFacts
from stagecoach_workflows.summary import human_bytes, human_seconds

_FILES_SHOWN = 12
_LONGEST_ANSWER = 600


def run_page(facts: RunFacts) -> bytes:
    """Return the page of a run as UTF-8."""
    name = facts.plan.recipe.get("name", "run")
    return page(f"{name} {facts.plan.run_id}", _parts(facts))


def _parts(facts: RunFacts) -> Iterator[Html]:
    plan = facts.plan
    yield heading(plan.recipe.get("name", "run"), 1)
    yield note(f"run {plan.run_id}, planned {utc(plan.created_unix_seconds)}, {facts.state}")
    if plan.recipe.get("description"):
        yield note(plan.recipe["description"])
    yield from _banners(facts)
    yield figures(_numbers(facts))
    charts = [chart for chart in _charts(facts) if chart]
    if charts:
        yield heading("Training")
        yield Html(f'<div class="charts">{"".join(charts)}</div>')
    yield from _heldout(facts)
    yield from _answers(facts)
    yield heading("Time and size by stage")
    yield _stages(facts)
    yield from _cost(facts)
    yield from _data(facts.data)
    if facts.origin is not None:
        yield heading("Made from")
        yield Html(f'<ul class="tree">{_tree(facts.origin, set())}</ul>')
    yield heading("Recipe")
    text = yaml.safe_dump(plan.recipe, sort_keys=False, allow_unicode=True, width=100)
    yield details("every field, defaults included", Html(f"<pre>{html(text)}</pre>"))


def _banners(facts: RunFacts) -> Iterator[Html]:
    for row in facts.tasks:
        if row.state == "failed":
            yield banner(f"{row.task} failed: {row.message or 'no reason was recorded'}", "bad")
    if facts.outcome is not None:
        yield banner(facts.outcome.sentence(), "bad" if facts.outcome.release.outcome == "refused" else "good")


def _numbers(facts: RunFacts) -> Iterator[tuple[str, object]]:
    losses = facts.values("loss")
    if losses:
        yield "training loss", _change(losses[0][1], losses[-1][1])
    found = list(facts.of_kind("evaluation"))
    if found:
        yield "held-out loss", _change(found[0]["loss"], found[-1]["loss"])
        yield "held-out accuracy", f"{found[-1]['accuracy']:.1%}"
    if losses:
        total = next((int(record["steps"]) for record in facts.records if record["kind"] == "start"), 0)
        yield "steps", Html(f"{number(losses[-1][0])} <small>of {number(total)}</small>")
        yield "tokens", number(sum(value for _, value in facts.values("tokens")))
    for label, name, form in (("tokens a second", "tokens_per_second", ",.0f"), ("MFU", "mfu", ".1%")):
        typical = facts.typical(name)
        if typical is not None:
            yield label, format(typical, form).replace(",", "\u202f")
    memory = facts.values("memory_gib")
    if memory:
        yield "most memory a rank", f"{max(value for _, value in memory):.1f} GiB"
    if facts.gpus and facts.attempts:
        yield "GPU hours", f"{facts.gpu_hours:.2f}"
        if facts.usd_per_gpu_hour is not None:
            yield "price", f"{facts.gpu_hours * facts.usd_per_gpu_hour:,.2f} USD"


def _change(first: float, last: float) -> Html:
    return Html(f"{last:.4f} <small>from {first:.4f}</small>")


def _charts(facts: RunFacts) -> Iterator[Html]:
    heldout = [(float(record["step"]), float(record["loss"])) for record in facts.of_kind("evaluation")]
    series = [
        Series(label="training", points=thin(facts.values("loss"))),
        Series(label="held out", points=heldout, style="two", dots=True),
    ]
    yield line_chart("Loss, nats a token", "step", series, "{:g}".format)
    for title, name, form in (
        ("Learning rate", "lr", _rate),
        ("Tokens a second", "tokens_per_second", "{:,.0f}".format),
        ("Model FLOP utilisation", "mfu", "{:.3g}".format),
        ("Memory of a rank, GiB", "memory_gib", "{:g}".format),
        ("Gradient norm", "grad_norm", "{:g}".format),
    ):
        yield line_chart(title, "step", [Series(label=title, points=thin(facts.values(name)))], form)


def _rate(value: float) -> str:
    """Return ``2.5e-5``."""
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}" if value else "0"


def _heldout(facts: RunFacts) -> Iterator[Html]:
    found = list(facts.of_kind("evaluation"))
    if not found:
        return
    sources = sorted({source for record in found for source in record.get("per_source", {})})
    yield heading("Held-out loss by source")
    yield table(
        ["step", "all", "accuracy", *sources],
        [
            [
                number(record["step"]),
                f"{record['loss']:.4f}",
                f"{record['accuracy']:.1%}",
                *(_loss(record.get("per_source", {}).get(source)) for source in sources),
            ]
            for record in _spread(found, 12)
        ],
    )


def _loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _spread(values: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return at most ``count`` values at equal distances, first and last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(at * (len(values) - 1) / (count - 1))] for at in range(count)]


def _answers(facts: RunFacts) -> Iterator[Html]:
    if not facts.answers:
        return
    before, after = facts.answers_steps
    yield heading("What the model says")
    judged = [pair for pair in facts.answers if pair.right is not None]
    if judged:
        yield note(
            f"{sum(bool(pair.right) for pair in judged)} of {len(judged)} tasks answered right after step {after}"
        )
    head = ["prompt", *([f"before (step {before})"] if after > before else []), f"after (step {after})", ""]
    yield table(head, [_answer_row(pair, with_before=after > before) for pair in facts.answers], text=True)


def _answer_row(pair: AnswerPair, *, with_before: bool) -> list[object]:
    verdict = "" if pair.right is None else ("right" if pair.right else f"wrong, expected: {pair.expected}")
    before = [_cut(pair.before)] if with_before else []
    return [_cut(pair.prompt), *before, _cut(pair.after), verdict]


def _cut(text: str | None) -> str:
    return text if text is not None and len(text) <= _LONGEST_ANSWER else f"{(text or '')[:_LONGEST_ANSWER]} .."


def _stages(facts: RunFacts) -> Html:
    most = max((row.seconds or 0.0 for row in facts.tasks), default=0.0) or 1.0
    rows = []
    for row in facts.tasks:
        took = None if row.seconds is None else human_seconds(row.seconds)
        old = row.decision == "skip"
        made = "there before" if old else row.state
        size = None if row.size_bytes is None else human_bytes(row.size_bytes)
        rows.append([row.task, bar((row.seconds or 0.0) / most, old=old), took, size, row.attempts or None, made])
    return table(["task", "", "time", "size", "attempts", "state"], rows)


def _cost(facts: RunFacts) -> Iterator[Html]:
    if not facts.attempts:
        return
    yield heading("Attempts of the training")
    yield table(
        ["attempt", "from step", "to step", "time", *(["GPU hours"] if facts.gpus else [])],
        [
            [
                use.attempt,
                number(use.first_step),
                number(use.last_step),
                human_seconds(use.seconds),
                *([f"{facts.gpus * use.seconds / 3600:.2f}"] if facts.gpus else []),
            ]
            for use in facts.attempts
        ],
    )
    if facts.gpus:
        price = (
            "the price of this GPU is not known; give --price"
            if facts.usd_per_gpu_hour is None
            else f"at {facts.usd_per_gpu_hour:g} USD an hour and GPU"
        )
        yield note(f"{facts.gpus} GPUs, from the first to the last record of each attempt, {price}")
    else:
        yield note("trained on CPU")


def _data(data: dict[str, Any]) -> Iterator[Html]:
    if not data:
        return
    yield heading("Data")
    fill = data.get("fill")
    shown = [
        ("packs", data.get("num_packs")),
        ("documents", data.get("num_documents")),
        ("tokens", data.get("num_tokens")),
        ("trained tokens", data.get("num_trained_tokens")),
        ("held-out documents", data.get("heldout_documents")),
        ("fill", None if fill is None else f"{fill:.2%}"),
    ]
    yield figures(
        [(label, number(value) if isinstance(value, int) else value) for label, value in shown if value is not None]
    )
    sources = data.get("sources")
    if isinstance(sources, list):
        columns = ("rows_read", "duplicates", "held_out", "documents", "tokens", "trained_tokens", "longest_tokens")
        yield table(
            ["source", *(column.replace("_", " ") for column in columns)],
            [[row.get("name"), *(number(row.get(column, 0)) for column in columns)] for row in sources],
        )


def _tree(node: LineageNode, seen: set[str]) -> Html:
    """Return an output and what it was made from; what several outputs share is spelled out once."""
    role = Html(f"{html(node.role)}: ") if node.role else ""
    run = f", run {node.provenance['run_id']}" if "run_id" in node.provenance else ""
    if node.prefix in seen:
        return Html(f"<li>{role}{html(node.prefix)}, see above</li>")
    seen.add(node.prefix)
    inner = [f"<li>{html(_source(node.source, node.commit))}</li>"] if node.source else []
    inner += [f"<li>{html(_file(file))}</li>" for file in node.files[:_FILES_SHOWN]]
    if len(node.files) > _FILES_SHOWN:
        inner.append(f"<li>and {len(node.files) - _FILES_SHOWN} more files</li>")
    inner += [_tree(child, seen) for child in node.inputs]
    below = f"<ul>{''.join(inner)}</ul>" if inner else ""
    return Html(f"<li>{role}<b>{html(node.prefix)}</b> ({html(node.task)}{html(run)}){below}</li>")


def _source(source: dict[str, Any], commit: str | None) -> str:
    values = {name: value for name, value in source.items() if value not in (None, [], ())}
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"from {told}{f', commit {commit}' if commit else ''}"


def _file(file: dict[str, Any]) -> str:
    digest = file.get("sha256") or file.get("git_blob_sha1") or file.get("etag") or ""
    return f"{file.get('path')}  {human_bytes(int(file.get('size_bytes', 0)))}  {digest}"
