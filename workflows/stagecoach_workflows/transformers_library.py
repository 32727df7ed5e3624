"""Imports transformers for those who ask a model: quietly, and without looking for garbage in what imports keep."""

from __future__ import annotations

import gc
from typing import Any

from stagecoach.errors import ConfigError


def load_transformers() -> Any:
    """Return the module, with what a causal model needs of it already imported.

    Raises:
        ConfigError: There is no transformers, or no torch, beside this Python.
    """
    gc.disable()  # imports keep what they allocate: looking through it again and again takes a second of eight
    try:
        import transformers
        import transformers.generation.utils
        import transformers.modeling_utils
    except ImportError as error:
        raise ConfigError("expected the packages transformers and torch beside this Python; install them") from error
    finally:
        gc.freeze()
        gc.enable()
    library: Any = transformers
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library
