"""An export in this process through transformers alone: the reference that servers are compared with, chat, prompt files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagecoach.errors import DataError
from stagecoach_workflows.serving.exports import ServedModel
from stagecoach_workflows.transformers_library import load_transformers

Messages = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model said."""

    text: str
    stopped: bool
    """It ended by an end token, not for want of room."""
    num_tokens: int
    """The end token included."""


class LocalModel:
    """A loaded model; on the first GPU if there is one."""

    def __init__(self, model: ServedModel) -> None:
        """Load it.

        Raises:
            ConfigError: There is no transformers, or no torch, beside this Python.
        """
        self._library = library = load_transformers()
        self._tokenizer = library.AutoTokenizer.from_pretrained(model.folder)
        loaded = library.AutoModelForCausalLM.from_pretrained(model.folder, dtype="auto").eval()
        self._model = loaded.to("cuda") if library.utils.is_torch_cuda_available() else loaded
        self._stop_ids = set(model.stop_ids)

    def reply(self, messages: Messages, *, max_tokens: int, temperature: float = 0.0, streamed: bool = False) -> Reply:
        """Answer a conversation, greedily at temperature 0; ``streamed`` writes it to standard output as it comes.

        Raises:
            DataError: The chat template refuses the messages.
        """
        try:
            batch = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
        except (ValueError, TypeError, KeyError, self._template_error()) as error:
            raise DataError(f"messages: the chat template refuses them: {error}") from error
        options: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            options["temperature"] = temperature
        if streamed:
            options["streamer"] = self._library.TextStreamer(
                self._tokenizer, skip_prompt=True, skip_special_tokens=True
            )
        output = self._model.generate(**batch, **options)
        new = [int(token) for token in output[0][batch["input_ids"].shape[1] :]]
        return Reply(
            text=self._tokenizer.decode(new, skip_special_tokens=True),
            stopped=bool(new) and new[-1] in self._stop_ids,
            num_tokens=len(new),
        )

    @staticmethod
    def _template_error() -> type[Exception]:
        from jinja2 import TemplateError

        return TemplateError
