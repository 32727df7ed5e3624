"""Configs of tasks that read more than one recipe section."""

from __future__ import annotations

from stagecoach.recipe.base import Section, result
from stagecoach.recipe.data import DataConfig
from stagecoach.recipe.pack import PackConfig


class PackTaskConfig(Section):
    """What ``pack`` is asked to do: how the rows are read and mixed, and how they are tokenised and packed."""

    data: DataConfig = result()
    """The recipe's data section."""
    pack: PackConfig = result()
    """The recipe's pack section."""
