"""A real SLURM on this machine: slurmctld, munge, and nodes that are a slurmd in name spaces of their own.

A node can be switched off: killing its slurmd ends every process of its PID name space at once, as a power cut would.
It needs root and Debian's slurmctld, slurmd, slurm-client and munge.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stagecoach.settings import child_environ

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare")
NODES = ("n1", "n2", "n3", "g1")
HIDDEN = "hidden"
"""A folder of the cluster that the nodes see empty, as a login node's own disk is."""
_WAIT_SECONDS = 60.0

_CONF = """\
ClusterName=stagecoach
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a job waits after it was requeued; the default is 120 seconds
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
SlurmdTimeout=10
KillWait=10
MinJobAge=3600
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
{nodes}
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=g1 MaxTime=1-00:00:00 State=UP
"""


@dataclass(slots=True)
class SlurmCluster:
    """A cluster that runs."""

    folder: Path
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environ(self, **more: str) -> dict[str, str]:
        """The variables with which SLURM's programs find it."""
        return child_environ(SLURM_CONF=str(self.folder / "slurm.conf"), OMP_NUM_THREADS="1", **more)

    def ask(self, *command: str) -> str:
        """What one of SLURM's programs prints."""
        done = subprocess.run(command, env=self.environ(), capture_output=True, text=True, check=True)
        return done.stdout

    def start_node(self, name: str) -> None:
        """Switch a node on."""
        command = "mkdir -p /dev/mqueue"  # containers that share the node's /dev/shm ask for it too
        command += f" && mount --bind {self.folder}/hosts /etc/hosts && mount -t tmpfs none {self.folder}/{HIDDEN}"
        command += f" && exec slurmd -D -N {name} -f {self.folder}/slurm.conf"
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.nodes[name] = _daemon([*unshare, "sh", "-c", command], self.folder / f"node-{name}.out")

    def kill_node(self, name: str) -> None:
        """Switch a node off without a warning."""
        node = self.nodes.pop(name)
        node.kill()
        node.wait()

    def wait_for_nodes(self) -> None:
        """Wait until every node takes jobs."""
        limit = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < limit:
            states = self.ask("sinfo", "--noheader", "--Node", "--format=%N %t").split()[1::2]
            if len(states) == len(NODES) and all(state in ("idle", "mix", "alloc") for state in states):
                return
            time.sleep(0.2)
        raise TimeoutError(f"nodes are {states}; see {self.folder}/slurmctld.log")

    def queue(self) -> list[str]:
        """The names of the jobs that wait or run."""
        return self.ask("squeue", "--noheader", "--format=%j").split()


def missing_programs() -> list[str]:
    """What has to be installed first."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def running_slurm(folder: Path) -> Iterator[SlurmCluster]:
    """Run a cluster for the time of the block."""
    for name in ("state", HIDDEN):
        (folder / name).mkdir(parents=True)
    ports = _free_ports(1 + len(NODES))
    lines = [
        f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={socket.gethostname()} Port={port} CPUs=4 RealMemory=8000"
        f"{' Gres=gpu:a100:4 Features=scratch' if name == 'g1' else ''} State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    (folder / "slurm.conf").write_text(_CONF.format(folder=folder, ports=ports, nodes="\n".join(lines)))
    for number in range(4):
        os.mknod(folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # SLURM counts only device files
    (folder / "gres.conf").write_text(f"NodeName=g1 Name=gpu Type=a100 File={folder}/gpu[0-3]\n")
    names = " ".join(["localhost", socket.gethostname(), *NODES])
    (folder / "hosts").write_text(f"127.0.0.1 {names}\n")
    cluster = SlurmCluster(folder)
    daemons = [_start_munge(folder), _start_controller(cluster)]
    try:
        for name in NODES:
            cluster.start_node(name)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        for name in list(cluster.nodes):
            cluster.kill_node(name)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    options = [f"--{name}={folder / file}" for name, file in files.items()]
    return _daemon(["munged", "--foreground", "--force", *options], folder / "munged.out")


def _start_controller(cluster: SlurmCluster) -> subprocess.Popen[bytes]:
    command = ["slurmctld", "-D", "-f", str(cluster.folder / "slurm.conf")]
    return _daemon(command, cluster.folder / "slurmctld.out")


def _daemon(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as stream:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def is_root() -> bool:
    """Whether name spaces and nodes can be made."""
    return os.geteuid() == 0
