"""Asynchronous tensor parallelism: inductor splits products and their collectives in parts that overlap.

A flag that does nothing is the usual failure here (the pass needs symmetric memory on the group, collectives along
dimension 0, and a compiled graph that holds both sides), so the fusions are counted and none is an error.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from stagecoach.errors import ConfigError

_counts = {"all_gather_matmul": 0, "matmul_reduce_scatter": 0}


def enable(group: dist.ProcessGroup) -> None:
    """Switch the pass on for this process and start counting; before anything is compiled.

    Raises:
        ConfigError: This torch has no such pass.
    """
    try:
        import torch._inductor.config as inductor
        import torch._inductor.fx_passes.micro_pipeline_tp as micro_pipeline
        from torch.distributed._symmetric_memory import enable_symm_mem_for_group
    except ImportError as error:
        raise ConfigError(
            f"async_tp: this torch has no asynchronous tensor parallelism ({error}); set it to false"
        ) from error
    enable_symm_mem_for_group(group.group_name)
    inductor._micro_pipeline_tp = True
    # A cached graph would skip the pass that is counted here.
    inductor.force_disable_caches = True
    for kind, name in (
        ("all_gather_matmul", "_insert_fused_all_gather_matmul"),
        ("matmul_reduce_scatter", "_insert_fused_matmul_reduce_scatter"),
    ):
        original = getattr(micro_pipeline, name)
        if not hasattr(original, "counted"):
            setattr(micro_pipeline, name, _counting(original, kind))


def _counting(original: Any, kind: str) -> Any:
    def counted(*arguments: Any, **options: Any) -> Any:
        _counts[kind] += 1
        return original(*arguments, **options)

    counted.counted = True  # type: ignore[attr-defined]
    return counted


def num_fusions() -> dict[str, int]:
    """Return how many fusions this process compiled, by kind."""
    return dict(_counts)


def check_fused() -> None:
    """After the first step: refuse to go on with a flag that did nothing.

    Raises:
        ConfigError: Nothing was fused.
    """
    if not all(_counts.values()):
        raise ConfigError(
            f"async_tp is on but the compiler fused {_counts['all_gather_matmul']} all-gathers and "
            f"{_counts['matmul_reduce_scatter']} reduce-scatters with products, expected some of each; set it to false"
        )
