r"""Turns rendered conversations into ids and trained bits: which token is a target, and proof that the model will see
that prompt.

    <|im_start|> assistant \n  Hello  !  <|im_end|>  \n
         0           0      0    1    1       1       0

The ids are those of the whole text. A token that begins in the header and ends in the content belongs to neither: it
is left untrained and counted. For every trained turn the ids of the prompt, encoded alone, must be the ids that stand
before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress, pairwise

import numpy as np
import numpy.typing as npt

from stagecoach.formats.chat_template import IM_END, IM_START
from stagecoach.formats.tokenizer import ChatTokenizer, Encoded
from stagecoach_pack.chat import Rendered
from stagecoach_pack.problems import RowProblem


@dataclass(slots=True)
class Labelled:
    """One conversation in tokens.

    Attributes:
        ids: int32 [n].
        trained: This token is a target, bool [n].
        breaks: Token positions, ascending, before which the conversation may be cut without cutting a message.
        num_crossing: Tokens that cross from a header into content.
        num_literal: Places where content spells a control token.
        tools_as_text: Tools were put into content.
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    breaks: npt.NDArray[np.int64]
    num_crossing: int = 0
    num_literal: int = 0
    tools_as_text: bool = False


class Labeller:
    """Encodes and labels conversations of one tokenizer, many at a time."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Prepare the fast path, which needs control tokens that cut the text cleanly."""
        self._tokenizer = tokenizer
        self._start, self._end = tokenizer.id_of(IM_START), tokenizer.id_of(IM_END)
        self._fast = tokenizer.is_chatml and tokenizer.splits_hard
        self._headers: dict[str, npt.NDArray[np.int32]] = {}
        self._tails: dict[str, npt.NDArray[np.int32]] = {}

    def label(self, batch: Sequence[Rendered]) -> list[Labelled | RowProblem]:
        """Return ids and trained bits of each conversation, or why it has none."""
        found: list[Labelled | RowProblem | None] = [None] * len(batch)
        plain = [index for index, rendered in enumerate(batch) if not rendered.literal]
        texts = [batch[index].text for index in plain]
        if self._fast:
            done: Iterable[Labelled | RowProblem | None] = self._by_control_tokens([batch[index] for index in plain])
        else:
            encodings = self._tokenizer.encode_batch_with_offsets(texts)
            done = map(self._by_offsets, [batch[index] for index in plain], encodings)
        for index, labelled in zip(plain, done, strict=True):
            found[index] = labelled
        return [done if done is not None else self._by_offsets(batch[index], None) for index, done in enumerate(found)]

    def _by_control_tokens(self, batch: Sequence[Rendered]) -> list[Labelled | None]:
        """Label by the places of the ChatML tokens; None for those with a header whose tokens are not the usual ones.

        Works on the ids of all conversations, one behind another: S turns start in them, T of which are the turns of
        messages. The others hold tools, in a system message of their own before the first turn of a conversation.
        """
        ids, borders = self._tokenizer.encode_chatml_batch([rendered.text for rendered in batch])
        starts_S, ends_S = np.flatnonzero(ids == self._start), np.flatnonzero(ids == self._end)
        first_start = np.searchsorted(starts_S, borders)
        num_turns = np.array([len(rendered.trained) for rendered in batch], np.int64)
        trained_T = np.fromiter(chain.from_iterable(rendered.trained for rendered in batch), np.bool_)
        behind = np.cumsum(num_turns)
        start_T = np.arange(len(trained_T)) + np.repeat(first_start[1:] - behind, num_turns)
        chosen = start_T[trained_T]
        begins, is_usual = starts_S[chosen], np.ones(len(chosen), np.bool_)
        roles = list(compress(chain.from_iterable(rendered.roles for rendered in batch), trained_T.tolist()))
        for role in set(roles):
            of_role = np.array([other == role for other in roles]) if roles.count(role) < len(roles) else slice(None)
            for token in self._header(role).tolist():
                is_usual[of_role] &= ids[begins[of_role]] == token
                begins[of_role] += 1
        is_usual &= begins <= ends_S[chosen]
        changes = np.zeros(len(ids) + 1, np.int8)  # 1 where a trained run begins, -1 behind it
        changes[begins[is_usual]] = 1
        changes[ends_S[chosen[is_usual]] + 1] = -1
        trained = np.cumsum(changes[:-1], dtype=np.int8).view(np.bool_)
        unusual = set(np.searchsorted(first_start, chosen[~is_usual], side="right").tolist())
        found: list[Labelled | None] = []
        for number, (low, high) in enumerate(pairwise(borders.tolist()), 1):
            breaks = starts_S[first_start[number - 1] + 1 : first_start[number]] - low
            found.append(None if number in unusual else Labelled(ids[low:high], trained[low:high], breaks))
        return found

    def _header(self, role: str) -> npt.NDArray[np.int32]:
        if role not in self._headers:
            self._headers[role] = np.array(self._tokenizer.encode_batch([f"{IM_START}{role}\n"])[0], np.int32)
        return self._headers[role]

    def _by_offsets(self, rendered: Rendered, encoded: Encoded | None) -> Labelled | RowProblem:
        """Label by the characters that each token stands for."""
        try:
            if encoded is None:
                encoded = self._tokenizer.encode(rendered.text, rendered.literal)
            self._check_controls(rendered, encoded)
            return self._labelled(rendered, encoded)
        except RowProblem as problem:
            return problem
        except ValueError as error:
            return RowProblem("not encodable", "", "text that the tokenizer can encode", str(error))

    def _check_controls(self, rendered: Rendered, encoded: Encoded) -> None:
        """Refuse content that becomes a control token once it is normalised, such as one in full-width letters."""
        if self._tokenizer.splits_hard:
            return
        expected = len(self._tokenizer.control_pattern.findall(rendered.text))
        found = int(np.isin(encoded.ids, list(self._tokenizer.control_ids.values())).sum())
        if found > expected:
            raise RowProblem(
                "control string", "", f"content that makes none of the {expected} control tokens", f"{found} of them"
            )

    def _labelled(self, rendered: Rendered, encoded: Encoded) -> Labelled:
        trained = np.zeros(len(encoded.ids), np.bool_)
        breaks = []
        crossing = 0
        for (begin, end), chosen in zip(rendered.turns, rendered.trained, strict=True):
            if not chosen:
                continue
            inside = (encoded.starts >= begin) & (encoded.ends <= end) & (encoded.ends > begin)
            crosses = (encoded.starts < begin) & (encoded.ends > begin)
            trained |= inside
            crossing += int(crosses.sum())
            if inside.any():
                breaks.append(int(np.flatnonzero(inside)[-1]) + 1)
            if not crosses.any():
                self._check_prompt(rendered, encoded, begin)
        if self._start is not None and self._tokenizer.is_chatml:
            breaks = np.flatnonzero(encoded.ids == self._start)[1:].tolist()
        return Labelled(
            encoded.ids, trained, np.array(breaks, np.int64), crossing, len(rendered.literal), rendered.tools_as_text
        )

    def _check_prompt(self, rendered: Rendered, encoded: Encoded, begin: int) -> None:
        """Refuse a turn whose prompt, encoded by itself, has other ids than it has in the whole conversation.

        Only what stands behind the last control token is encoded again, since that token cuts the text cleanly.
        """
        stop = int(np.searchsorted(encoded.ends, begin, side="right"))
        first = 0
        if self._tokenizer.splits_hard:
            controls = np.flatnonzero(np.isin(encoded.ids[:stop], list(self._tokenizer.control_ids.values())))
            first = int(controls[-1]) if len(controls) else 0
        at = int(encoded.starts[first]) if len(encoded.starts) and first < stop else begin
        text = rendered.text[at:begin]
        literal = [(low - at, high - at) for low, high in rendered.literal if at <= low and high <= begin]
        if literal or text not in self._tails:
            ids = self._tokenizer.encode(text, literal).ids
            if not literal and len(text) < 200:
                self._tails[text] = ids
        else:
            ids = self._tails[text]
        if not np.array_equal(ids, encoded.ids[first:stop]):
            raise RowProblem(
                "prompt ids differ",
                "",
                "a prompt whose ids are the same alone and before its answer",
                rendered.text[max(0, begin - 40) : begin],
            )
