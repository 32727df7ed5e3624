"""The learning rate of every step, from the recipe alone: no state, so a resumed run asks for the same numbers.

By example:

    cosine, 760 steps, warm-up 50, peak 1e-5, end 1e-6 (the original's Mistral recipe)

      lr ^      ___
         |     /   ''--..               position p counts updates; update k (from 0) uses p = k + 1, so the first update
         |    /          ''--..         already moves and the last one has exactly the end's rate. With
         |   /                 ''--     `first_update_at_zero` it uses p = k, as Megatron does: the first has rate 0.
         +---+-------------------+--> p
         0   50                 760
"""

from __future__ import annotations

import math

from stagecoach.recipe.train import TrainConfig


def learning_rate(config: TrainConfig, update: int, total_steps: int) -> float:
    """Return the rate of one update.

    Args:
        config: lr, min_lr, schedule, warm-up and decay_share are used.
        update: Which update, from 0; skipped steps count.
        total_steps: Steps of the whole training.

    Examples:
        >>> original = TrainConfig(steps=760, warmup_steps=50, first_update_at_zero=True)
        >>> [f"{learning_rate(original, k, 760):.3g}" for k in (0, 1, 50, 405, 760)]
        ['0', '2e-07', '1e-05', '5.5e-06', '1e-06']
    """
    position = update if config.first_update_at_zero else update + 1
    warmup = config.warmup_steps_of(total_steps)
    if position < warmup:
        return config.lr * position / warmup
    position = min(position, total_steps)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "inverse_square_root":
        return max(config.min_lr, config.lr * math.sqrt(max(warmup, 1) / max(position, 1)))
    if config.schedule == "wsd":
        decay_steps = round(config.decay_share * total_steps)
        decay_from = max(warmup, total_steps - decay_steps)
        return _between(config, 1.0 - _progress(position, decay_from, total_steps))
    progress = _progress(position, warmup, total_steps)
    if config.schedule == "linear":
        return _between(config, 1.0 - progress)
    return _between(config, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _progress(position: int, start: int, stop: int) -> float:
    """How far the position is from start (0) to stop (1); 0 before, and where there is no distance."""
    return max(0, position - start) / (stop - start) if stop > start else 0.0


def _between(config: TrainConfig, share: float) -> float:
    """Share 1 is the peak, 0 the end."""
    return config.min_lr + (config.lr - config.min_lr) * share
