"""Runs a step of the workflow as ``docker run IMAGE ..`` with the same arguments, mounts and limits of network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from stagecoach.errors import ConfigError
from stagecoach.settings import child_environ
from stagecoach_workflows.engine import TaskRun
from stagecoach_workflows.interpret import Step

_PROGRESS_PATH = "/work/progress"
_NEEDS_THE_NETWORK = ("plan", "download-model", "download-tokenizer", "download-data", "export")
PASSED_ON = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "STAGECOACH_S3_ENDPOINT_URL",
    "STAGECOACH_S3_ADDRESSING",
    "STAGECOACH_S3_CHECKSUMS",
    "STAGECOACH_S3_SSE_KMS_KEY_ID",
    "STAGECOACH_FAULT",
    "OMP_NUM_THREADS",
)
HUB_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")


class DockerLauncher:
    """Starts a container for each attempt; ``docker run`` passes signals on and ends with the container's exit code."""

    def __init__(
        self,
        store_url: str,
        *,
        gpus: int,
        folders: tuple[Path, ...] = (),
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what the containers need of this machine.

        Args:
            store_url: A directory store is mounted at its own path; any other is reached by the host's network.
            gpus: GPUs for train.
            folders: Further folders, such as a directory source's, mounted read-only at their own paths.
            extra_environ: Set in every container.
        """
        self._folder = Path(store_url.removeprefix("file://")) if store_url.startswith("file://") else None
        self._gpus = gpus
        self._folders = folders
        self._extra = dict(extra_environ or {})

    def start(self, step: Step, args: tuple[str, ...], run: TaskRun, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start one attempt.

        Raises:
            ConfigError: There is no ``docker`` on this machine.
        """
        try:
            return subprocess.Popen(
                self.command(step, args, run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environ(**self._extra),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ConfigError(
                "--runner docker: expected a `docker` program on PATH; install Docker or leave it out"
            ) from error

    def command(self, step: Step, args: tuple[str, ...], run: TaskRun) -> list[str]:
        """Return the command line of one attempt."""
        run.folder.mkdir(parents=True, exist_ok=True)
        command = ["docker", "run", "--rm", "--name", self._name(run), "--user", f"{os.getuid()}:{os.getgid()}"]
        command += ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        command += ["--network", "host" if self._needs_network(step) else "none"]
        for name, path in step.mounts.items():
            if name == "artifacts":
                command += ["--volume", f"{run.artifacts.absolute()}:{path}"]
            elif name == "shared-memory":
                command += ["--shm-size", "1g" if not self._gpus else "16g"]
            else:
                command += ["--tmpfs", f"{path}:rw,exec,mode=1777"]
        if self._folder is not None:
            command += ["--volume", f"{self._folder}:{self._folder}"]
        for folder in self._folders:
            command += ["--volume", f"{folder}:{folder}:ro"]
        command += ["--volume", f"{run.folder.absolute()}:{_PROGRESS_PATH}"]
        variables = {**step.env, "ARGO_PROGRESS_FILE": f"{_PROGRESS_PATH}/{run.progress_file.name}"}
        for variable, value in variables.items():
            command += ["--env", f"{variable}={value}"]
        passed_on = (*PASSED_ON, *self._extra, *(HUB_VARIABLES if self._asks_the_hub(step) else ()))
        for variable in passed_on:  # without a value: taken from docker's own environment, so no secret is an argument
            command += ["--env", variable]
        if step.name == "train" and self._gpus:
            command += ["--gpus", str(self._gpus)]
        program, *rest = step.command
        return [*command, "--entrypoint", program, step.image, *rest, *args]

    def kill(self, run: TaskRun) -> None:
        """End the attempt's container at once."""
        if run.process is not None:
            subprocess.run(["docker", "kill", self._name(run)], capture_output=True, check=False)
            run.process.kill()
            run.process.wait()

    @staticmethod
    def _name(run: TaskRun) -> str:
        run_id = run.folder.absolute().parent.name
        return f"stagecoach-{run_id.lower()}-{run.spec.name}-{run.attempt}"

    def _needs_network(self, step: Step) -> bool:
        return self._folder is None or self._asks_the_hub(step)

    @staticmethod
    def _asks_the_hub(step: Step) -> bool:
        return step.name.startswith(_NEEDS_THE_NETWORK)
