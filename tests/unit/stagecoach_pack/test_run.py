"""The whole stage, from files to packs: what comes in comes out once, in the right place, with the right labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stagecoach.errors import DataError
from stagecoach.formats.packed import CUT_BEFORE, PackedSplit
from stagecoach.outputs import Input
from stagecoach_pack.conversation import Conversation
from stagecoach_pack.sources.readers import MAX_ROW_BYTES
from tests.unit.stagecoach_pack.chat_tokenizers import Family, chat_tokenizer, demo_lines
from tests.unit.stagecoach_pack.generated_chats import generated_chat
from tests.unit.stagecoach_pack.packing_runs import json_lines, pack_run
from tests.unit.stagecoach_pack.test_labels import label

REAL = Path(__file__).parents[4] / "shared" / "data" / "chat"
DEMO = "\n".join(demo_lines()).encode()


def rows(number: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"row-{seed}", "messages": generated_chat(seed).messages} for seed in range(first, first + number)]


def digests(packed: Input, split: str) -> Counter[str]:
    return Counter(PackedSplit.open(packed, split).document_hashes)


@pytest.mark.parametrize("family", ["mistral", "llama3", "llama2-template"])
def test_every_document_has_the_ids_and_bits_of_its_conversation(tmp_path: Path, family: Family) -> None:
    talks = {f"row-{seed}": generated_chat(seed) for seed in range(60)}
    packed = pack_run(
        tmp_path, {"a": {"x.jsonl": json_lines(*rows(60))}}, family=family, pack_tokens=4096, heldout_num=9
    )
    seen = 0
    for name in ("train", "heldout"):
        split = PackedSplit.open(packed, name)
        for document in range(split.num_documents):
            expected = label(talks[split.trace(document)["id"]], family)
            assert split.document_tokens(document).tolist() == expected.ids.tolist()
            assert split.document_trained(document).tolist() == expected.trained.tolist()
            seen += 1
    assert seen == 60


@pytest.mark.parametrize("sampled", [None, 2])
def test_keys_of_tools_and_arguments_keep_their_order(tmp_path: Path, sampled: int | None) -> None:
    """Templates write tools and calls down as they are; sorting their keys would train other text than is served."""
    function = {"name": "f", "description": "d", "parameters": {"z": 1, "a": {"y": 0, "b": 1}}}
    tool = {"type": "function", "function": function}
    call = {"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": 2}}}
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    data = json_lines({"messages": talk, "tools": [tool]}, *rows(1))
    packed = pack_run(tmp_path, {"a": {"x.jsonl": data}}, source={"rows": sampled}, pack_tokens=4096)
    split = PackedSplit.open(packed, "train")
    document = next(d for d in range(split.num_documents) if split.trace(d)["row"] == 1)
    expected = chat_tokenizer("smollm2").encode_batch([chat_tokenizer("smollm2").template.render(talk, [tool])])[0]
    assert split.document_tokens(document).tolist() == expected


def test_packs_hold_every_token_once_and_targets_stay_inside_documents(tmp_path: Path) -> None:
    split = PackedSplit.open(pack_run(tmp_path, {"demo": {"chat.jsonl": DEMO}}), "train")
    tokens = 0
    documents: list[int] = []
    for index in range(split.num_packs):
        pack = split.pack(index)
        assert len(pack.tokens) == 256
        assert not pack.trained[pack.document_starts].any()
        assert (pack.positions[pack.document_starts] == 0).all()
        assert not pack.trained[pack.num_document_tokens :].any()
        tokens += pack.num_document_tokens
        documents += pack.document_ids.tolist()
    assert tokens == int(split.documents["num_tokens"].sum())
    assert documents == list(range(split.num_documents))


def test_bytes_do_not_depend_on_how_many_records_are_handled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"demo": {"chat.jsonl": DEMO}, "more": {"x.jsonl": json_lines(*rows(40))}}
    whole = pack_run(tmp_path / "whole", files, heldout_share=0.1)
    for name in (
        "stagecoach_pack.write._RECORDS_AT_ONCE",
        "stagecoach.formats.packed._RECORDS_AT_ONCE",
        "stagecoach.formats.packed._PACKS_AT_ONCE",
        "stagecoach_pack.spool._CONVERSATIONS_AT_ONCE",
    ):
        monkeypatch.setattr(name, 7)
    parts = pack_run(tmp_path / "parts", files, heldout_share=0.1)
    assert {name: whole.entry(name).sha256 for name in whole.names()} == {
        name: parts.entry(name).sha256 for name in parts.names()
    }


def test_a_sampled_source_before_a_whole_one_keeps_its_place(tmp_path: Path) -> None:
    """Sampled conversations are tokenised last; the plan must not see that."""
    sources = [
        {"name": name, "source": {"kind": "embedded"}, **more} for name, more in (("a", {"rows": 30}), ("b", {}))
    ]
    files = {"a": {"x.jsonl": json_lines(*rows(30))}, "b": {"y.jsonl": json_lines(*rows(30, first=30))}}
    sampled = pack_run(tmp_path / "sampled", files, data={"sources": sources})
    whole = pack_run(tmp_path / "whole", files)
    assert sampled.entry("train/documents.bin").sha256 == whole.entry("train/documents.bin").sha256
    assert sampled.entry("train/tokens.bin").sha256 == whole.entry("train/tokens.bin").sha256


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (pack_run(tmp_path / name, {"demo": {"chat.jsonl": DEMO}}, heldout_share=0.1) for name in "ab")
    assert {name: first.entry(name).sha256 for name in first.names()} == {
        name: again.entry(name).sha256 for name in again.names()
    }


def test_another_seed_gives_another_plan_of_the_same_documents(tmp_path: Path) -> None:
    first, other = (pack_run(tmp_path / str(seed), {"demo": {"chat.jsonl": DEMO}}, seed=seed) for seed in (0, 1))
    assert digests(first, "train") == digests(other, "train")
    assert first.summary["plan_sha256"] != other.summary["plan_sha256"]


def test_held_out_conversations_are_nowhere_in_training(tmp_path: Path) -> None:
    packed = pack_run(tmp_path, {"demo": {"chat.jsonl": DEMO}}, heldout_share=0.2)
    train, heldout = digests(packed, "train"), digests(packed, "heldout")
    assert heldout.total() > 10
    assert not set(train) & set(heldout)
    grown = pack_run(
        tmp_path / "grown",
        {"more": {"x.jsonl": json_lines(*rows(40))}, "demo": {"chat.jsonl": DEMO}},
        heldout_share=0.2,
    )
    assert set(heldout) <= set(digests(grown, "heldout"))


def test_duplicates_of_another_source_are_left_out(tmp_path: Path) -> None:
    packed = pack_run(
        tmp_path, {"a": {"x.jsonl": json_lines(*rows(9))}, "b": {"y.jsonl": json_lines(*rows(12, first=3))}}
    )
    report = json.loads(packed.read_bytes("report.json"))
    assert [row["duplicates"] for row in report["sources"]] == [0, 6]
    kept = pack_run(
        tmp_path / "kept",
        {"a": {"x.jsonl": json_lines(*rows(9)) * 2}},
        data={"remove_duplicates": False},
        pack_tokens=4096,
    )
    assert kept.summary["num_documents"] == 18


def test_a_weight_of_two_packs_everything_twice(tmp_path: Path) -> None:
    packed = pack_run(tmp_path, {"a": {"x.jsonl": json_lines(*rows(9))}}, source={"weight": 2}, pack_tokens=4096)
    split = PackedSplit.open(packed, "train")
    assert set(digests(packed, "train").values()) == {2}
    assert sorted(split.documents["copy"].tolist()) == [0] * 9 + [1] * 9


def test_a_long_conversation_is_split_into_documents_that_fit(tmp_path: Path) -> None:
    long = {"messages": [{"role": role, "content": "word " * 60} for role in ("user", "assistant") * 6]}
    packed = pack_run(tmp_path, {"a": {"x.jsonl": json_lines(long)}}, family="llama3")
    split, bos = PackedSplit.open(packed, "train"), chat_tokenizer("llama3").id_of("<|begin_of_text|>")
    assert packed.summary["num_documents"] > 3
    assert all(split.document_tokens(document)[0] == bos for document in range(split.num_documents))
    pieces = sorted(range(split.num_documents), key=lambda document: split.trace(document)["skipped_tokens"])
    whole = np.concatenate(
        [split.document_tokens(d)[1 if split.documents["flags"][d] & CUT_BEFORE else 0 :] for d in pieces]
    )
    assert whole.tolist() == label(Conversation(long["messages"]), "llama3").ids.tolist()
    report = json.loads(packed.read_bytes("report.json"))
    assert report["too_long"] == {"rule": "split", "conversations": 1, "pieces": len(pieces), "tokens_dropped": 0}


def test_a_conversation_without_a_target_is_left_out_and_counted(tmp_path: Path) -> None:
    only_user = {"messages": [{"role": "user", "content": "anyone?"}]}
    packed = pack_run(tmp_path, {"a": {"x.jsonl": json_lines(only_user, *rows(3))}}, pack_tokens=4096)
    assert packed.summary["num_documents"] == 3
    assert json.loads(packed.read_bytes("report.json"))["sources"][0]["without_targets"] == 1


def test_without_held_out_conversations_the_split_is_empty(tmp_path: Path) -> None:
    packed = pack_run(tmp_path, {"a": {"x.jsonl": json_lines(*rows(3))}})
    assert PackedSplit.open(packed, "heldout").num_packs == 0


def test_a_row_that_the_template_refuses_stops_or_is_dropped(tmp_path: Path) -> None:
    odd = {"messages": [{"role": "user", "content": "u"}, {"role": "system", "content": "late"}]}
    files = {"a": {"x.jsonl": json_lines(*rows(5), odd)}}
    with pytest.raises(DataError, match=r"^a: x\.jsonl: row 6: .*only user and assistant.*; correct the data"):
        pack_run(tmp_path, files, family="llama2-template", pack_tokens=4096)
    packed = pack_run(
        tmp_path / "drop",
        files,
        family="llama2-template",
        pack_tokens=4096,
        data={"on_bad_row": "drop", "max_bad_share": 0.5},
    )
    assert json.loads(packed.read_bytes("report.json"))["sources"][0]["bad_rows"] == {"refused by the template": 1}


def test_a_conversation_too_long_for_a_pack_can_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a/x\.jsonl: row 1: expected at most pack\.pack_tokens = 8 tokens"):
        pack_run(tmp_path, {"a": {"x.jsonl": json_lines(*rows(1))}}, pack_tokens=8, too_long="error")


def test_the_description_says_what_the_packs_were_made_with(tmp_path: Path) -> None:
    packed = pack_run(tmp_path, {"a": {"x.jsonl": json_lines(*rows(3))}}, family="mistral")
    description = json.loads(packed.read_bytes("packed.json"))
    assert (description["bos_id"], description["pad_id"], description["vocab_size"]) == (1, 0, 32_002)
    assert (description["token_dtype"], description["chat_format"]) == ("<u2", "chatml")
    assert description["tokenizer_sha256"] == chat_tokenizer("mistral").sha256
    assert description["files"] == ["a/x.jsonl"]


def test_the_log_says_how_many_examples_were_saved_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pack_run(tmp_path, {"a": {"x.jsonl": json_lines(*rows(7), *rows(3))}}, heldout_num=2, pack_tokens=4096)
    assert f"Saved 7 examples to file://{tmp_path}/store/packed/d/" in [record.message for record in caplog.records]


def test_scratch_is_empty_afterwards_also_after_an_error(tmp_path: Path) -> None:
    pack_run(tmp_path / "good", {"a": {"x.jsonl": json_lines(*rows(3))}})
    with pytest.raises(DataError):
        pack_run(tmp_path / "bad", {"a": {"x.jsonl": b"{"}})
    for name in ("good", "bad"):
        assert not [
            path for path in (tmp_path / name / "scratch").rglob("*") if path.is_file() and "input" not in str(path)
        ]


def test_the_limit_of_a_row_leaves_room_for_real_ones() -> None:
    assert MAX_ROW_BYTES >= 50_000_000


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/chat")
@pytest.mark.parametrize("name", ["glaive_toolcall_en_demo.json", "alpaca_en_demo.json"])
@pytest.mark.parametrize("pack_tokens", [4096, 16_384])
def test_real_files_take_at_most_one_pack_more_than_their_tokens(tmp_path: Path, name: str, pack_tokens: int) -> None:
    packed = pack_run(
        tmp_path,
        {"real": {name: (REAL / name).read_bytes()}},
        family="mistral",
        pack_tokens=pack_tokens,
        too_long="drop",
    )
    split = PackedSplit.open(packed, "train")
    assert split.num_packs <= -(-len(split.tokens) // pack_tokens) + 1
    report = json.loads(packed.read_bytes("report.json"))
    assert report["sources"][0]["bad_rows"] == {}
    row = report["sources"][0]
    assert split.num_documents + report["too_long"]["conversations"] + row["duplicates"] == row["rows_read"]
