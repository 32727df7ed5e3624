"""llama.cpp's own HTTP server under the options of its program ``llama-server``, from the Python package that carries it."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import xllamacpp


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    for name in ("model", "alias", "host", "chat-template-file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--jinja", required=True, action="store_true")
    given = parser.parse_args()  # anything else is an error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = given.model
    parameters.model_alias = {given.alias}
    parameters.hostnames = [given.host]
    parameters.port = given.port
    parameters.use_jinja = given.jinja
    parameters.chat_template = Path(given.chat_template_file).read_text(encoding="utf-8")
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
