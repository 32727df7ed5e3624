"""``stagecoach serve``, ``chat`` and ``generate``: what is done with an export."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagecoach_workflows.cli import options

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stagecoach_workflows.serving.exports import ServedModel
    from stagecoach_workflows.serving.servers import Address

Export = Annotated[
    str,
    typer.Argument(
        metavar="EXPORT",
        help="A Hub directory, the address of an export in a store (.../exports/NAME-KEY) or release:NAME.",
        show_default=False,
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, metavar="NUM", help="Longest answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, metavar="NUM", help="0 takes the likeliest token always.")]


def register(commands: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (serve, chat, generate):
        commands.command()(command)


def serve(
    export: Export,
    store: options.Store = "",
    backend: Annotated[str, typer.Option(help="auto, vllm, vllm-docker, transformers or llama.cpp.")] = "auto",
    name: Annotated[str, typer.Option(metavar="NAME", help="What clients call the model.", show_default=False)] = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    tensor_parallel: Annotated[
        int | None, typer.Option(min=1, metavar="NUM", help="GPUs of vLLM; as many as fit.", show_default=False)
    ] = None,
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="vLLM's image; a pinned release.", show_default=False)
    ] = "",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Send one chat, compare it with transformers' greedy answer, and end.")
    ] = False,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What --smoke asks.")] = "Who are you?",
    max_tokens: MaxTokens = 256,
    ready_seconds: Annotated[float, typer.Option(min=1.0, help="How long loading may take.")] = 600.0,
    show_command: Annotated[bool, typer.Option("--show-command", help="Print the server's command and end.")] = False,
) -> int:
    """Serve an export with an OpenAI-compatible API until Ctrl-C."""
    from stagecoach_workflows.serving import servers
    from stagecoach_workflows.serving import smoke as one_chat
    from stagecoach_workflows.serving.process import check_port, running

    address, machine = servers.Address(host=host, port=port), servers.Machine.look()
    if not show_command:
        check_port(address)  # before an export is fetched
    signal.signal(signal.SIGTERM, _interrupt)
    with _model(export, store, name) as model:
        chosen = servers.choose(backend, machine, model)
        words = servers.command(
            chosen, model, address, machine, parallel=tensor_parallel, image=image or servers.VLLM_IMAGE
        )
        if show_command:
            typer.echo(shlex.join(words))
            return 0
        reference = one_chat.reference_answer(model, prompt, max_tokens) if smoke else ""
        typer.echo(f"{model.name} by {chosen}, answers end at tokens {', '.join(map(str, model.stop_ids))}; loading ..")
        with running(words, address, model.folder.parent, ready_seconds) as process:
            typer.echo(_curl(model, address, prompt, max_tokens))
            if smoke:
                answer = one_chat.compare(model, address, prompt, max_tokens, reference)
                typer.echo(f"smoke: it stopped, and said what transformers says: {answer!r}")
                return 0
            code = process.wait()
            typer.echo(f"the server ended with exit code {code}", err=True)
            return 0 if code == 0 else 69


def chat(
    export: Export,
    store: options.Store = "",
    system: Annotated[str, typer.Option(metavar="TEXT", help="A system message.", show_default=False)] = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
) -> None:
    """Talk to an export here, by transformers; an empty line begins anew, Ctrl-D ends."""
    from stagecoach_workflows.serving.local_model import LocalModel

    with _model(export, store, "") as model:
        loaded = LocalModel(model)
        first: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages = list(first)
        while (line := _line()) is not None:
            if not line:
                messages = list(first)
                typer.echo("(a new conversation)")
                continue
            messages.append({"role": "user", "content": line})
            reply = loaded.reply(messages, max_tokens=max_tokens, temperature=temperature, streamed=True)
            messages.append({"role": "assistant", "content": reply.text})
            if not reply.stopped:
                typer.echo(f"(cut after {max_tokens} tokens)")


def generate(
    export: Export,
    prompts: Annotated[
        Path,
        typer.Argument(metavar="PROMPTS", help='JSON lines: {"prompt": ..} or {"messages": [..]}.', show_default=False),
    ],
    store: options.Store = "",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where answers go; here without it.", show_default=False)
    ] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
) -> None:
    """Answer a file of prompts by transformers: every row comes back with answer, stopped and num_tokens."""
    from stagecoach_workflows.serving.local_model import LocalModel
    from stagecoach_workflows.serving.prompt_file import answers_file, read_prompts, write_rows

    rows = read_prompts(prompts)
    with _model(export, store, "") as model, answers_file(output) as stream:
        loaded = LocalModel(model)
        answered = (
            (row, loaded.reply(row["messages"], max_tokens=max_tokens, temperature=temperature)) for row in rows
        )
        write_rows(
            stream,
            (
                {**row, "answer": reply.text, "stopped": reply.stopped, "num_tokens": reply.num_tokens}
                for row, reply in answered
            ),
        )


def _model(export: str, store: str, name: str) -> AbstractContextManager[ServedModel]:
    from stagecoach.settings import Settings
    from stagecoach_workflows.serving.exports import served_model

    return served_model(export, store or str(options.DEFAULT_WORK / "store"), name, Settings.from_environ())


def _curl(model: ServedModel, address: Address, prompt: str, max_tokens: int) -> str:
    from stagecoach_workflows.serving.smoke import chat_request

    body = json.dumps(chat_request(model, prompt, max_tokens), ensure_ascii=False)
    words = ["curl", f"{address.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    return f"ready; OpenAI-compatible under {address.url}/v1\n{shlex.join(words)}"


def _line() -> str | None:
    """Return what the user typed; None at the end."""
    try:
        return input("> ").strip()
    except EOFError:
        typer.echo()  # the terminal's own prompt belongs on a line of its own
        return None


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
