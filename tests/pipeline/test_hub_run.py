"""A whole run whose base model and chats come from a Hub, and whose export goes back to it, by ``HF_ENDPOINT`` alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stagecoach.outputs import open_input
from tests.hub_server import TOKEN, Hub, running_hub
from tests.micro_run import RUN, MicroWork

pytestmark = [
    pytest.mark.xdist_group("micro"),
    # The client itself sends streams in a way that its HTTP library calls old.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
SOURCES = (
    *("--set", "model.source={kind: hub, repo: team/base}"),
    *("--set", "data.sources=[{name: demo, source: {kind: hub, repo: team/chats}, rows: 64}]"),
)
PUSH = ("--set", "export.push={repo: team/answers}")


@pytest.fixture
def hub(micro: MicroWork, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the files of the undisturbed run as repositories; the model is gated."""
    with running_hub() as server:
        base: dict[str, bytes] = {}
        for task in ("download-model", "download-tokenizer"):
            found = open_input(micro.store, micro.plan().task(task).output, micro.folder / "in")
            base |= {name: found.read_bytes(name) for name in found.names()}
        chats = open_input(micro.store, micro.plan().task("download-data-demo").output, micro.folder / "in")
        server.add("team/base", base, gated=True)
        server.add("datasets/team/chats", {"chat.jsonl": chats.read_bytes("chat.jsonl")})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_run_from_the_hub_and_back(
    micro: MicroWork, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = MicroWork(tmp_path)
    refused = work.run(*SOURCES)
    assert refused.returncode == 78  # gated, and no token
    assert "accept the repository's terms and set HF_TOKEN" in refused.stdout + refused.stderr

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.behaviours, hub.behaviours_of = ["cut:1000", "status:503", "status:429"], "model.safetensors"
    done = work.run(*SOURCES, run_id=f"{RUN}-2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert work.digests("convert", f"{RUN}-2") == micro.digests("convert")
    assert any(asked is not None for _, asked, _ in hub.reads)  # a cut file was taken up in the middle

    export = open_input(work.store, work.plan(f"{RUN}-2").task("export").output, work.folder / "in")
    later = work.run(*SOURCES, *PUSH, run_id=f"{RUN}-3")
    assert later.returncode == 0, later.stdout + later.stderr
    decisions = {name: task.decision for name, task in work.plan(f"{RUN}-3").tasks.items()}
    assert {name for name, decision in decisions.items() if decision == "run"} == {"export"}
    assert hub.repos["team/answers"].branches["main"] == {name: export.read_bytes(name) for name in export.names()}

    again = work.run(*SOURCES, *PUSH, run_id=f"{RUN}-4")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(hub.repos["team/answers"].messages) == 1
    assert {task.decision for task in work.plan(f"{RUN}-4").tasks.values()} == {"skip"}

    before = work.plan(f"{RUN}-4").task("download-model").config["commit"]
    hub.repos["team/base"].branches["main"]["README.md"] = b"---\nlicense: mit\n---\n"
    moved = work.run(*SOURCES, run_id=f"{RUN}-5")  # the branch moved on, but only its card: nothing is made again
    assert moved.returncode == 0, moved.stdout + moved.stderr
    assert work.plan(f"{RUN}-5").task("download-model").config["commit"] != before
    assert {task.decision for task in work.plan(f"{RUN}-5").tasks.values()} == {"skip"}
