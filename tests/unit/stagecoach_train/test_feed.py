"""What is known of a pack before its tokens are read, by hand."""

from __future__ import annotations

from pathlib import Path

from stagecoach.formats.packed import PackedSplit
from stagecoach.storage.memory import MemoryStore
from stagecoach_train.feed import PackNumbers
from tests.unit.stagecoach_train.tiny_inputs import SPEC, tiny_inputs


def test_a_packs_cost_counts_attention_of_its_padding_and_its_targets(tmp_path: Path) -> None:
    split = PackedSplit.open(tiny_inputs(MemoryStore("feed"), tmp_path)["packed"], "train")
    numbers = PackNumbers.of(split, SPEC)
    # The first pack: documents of 12 and 8 tokens, 12 of padding; a window of 8 keys.
    # 12 tokens see 1 + .. + 8 + 4 x 8 = 68 keys, 8 tokens 36; 11 + 7 targets.
    assert (numbers.num_tokens[0], numbers.num_keys[0], numbers.num_targets[0]) == (20, 68 + 36, 18)
    attention = 12 * 2 * 4 * 4 * (68 + 36 + 68)  # 2 layers, 4 heads of 4
    head = 6 * 256 * 16 * 18  # 256 tokens, width 16
    assert numbers.costs[0] == attention + head
