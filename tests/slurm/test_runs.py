"""The micro recipe on a real SLURM: to the end, and through everything that happens to jobs there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.seaweed import SeaweedServer
from tests.slurm.cluster import HIDDEN
from tests.slurm.conftest import LONG, RUN, Work

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TASKS = ["probe", "download-model", "download-tokenizer", "download-data-demo", "convert", "shard", "pack", "train"]
TASKS += ["export", "notify"]


def resumed(log: str) -> list[int]:
    """The steps from which attempts after the first went on."""
    return [int(step) for step in re.findall(r"attempt \d+, from iteration (\d+)", log)]


def test_a_run_ends_well_and_a_second_one_submits_nothing(work: Work) -> None:
    first = work.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert work.manifest("export") is not None
    assert work.finished()["state"] == "succeeded" and work.finished()["runner"] == "slurm"
    shown = work.call("status", RUN)
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == TASKS
    assert "packs" in work.call("logs", RUN, "--task", "pack").stdout

    second = work.run(run_id="20261125T013100Z-micro-again")
    assert second.returncode == 0, second.stderr
    assert "no job was submitted" in second.stdout
    assert work.cluster.queue() == []


def test_the_tiny_recipe_learns_as_it_does_elsewhere(work: Work) -> None:
    done = work.run(recipe="tiny-cpu")
    assert done.returncode == 0, done.stdout + done.stderr + work.log("train")
    last = float(re.search(r"last step (\d+\.\d+)", done.stdout)[1])  # type: ignore[index]
    assert last < 0.01, done.stdout
    assert "exported model: " in done.stdout


def test_scripts_submitted_by_hand_are_a_run_too(work: Work) -> None:
    """Also where two shells submit them at once: one is refused, and every job is there once."""
    work.configure(f"python: {sys.executable}")
    scripts = work.folder / "scripts"
    rendered = work.call(
        "render", "micro", "--runner", "slurm", "--output", str(scripts), "--store", str(work.folder / "store")
    )
    assert rendered.returncode == 0, rendered.stderr
    folder = work.folder / RUN
    command = [str(scripts / "submit.sh"), RUN, str(folder)]
    at_once = [
        subprocess.Popen(command, env=work.cluster.environ(), cwd=work.folder, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1].splitlines()[-1:] for process in at_once]
    assert sorted(process.returncode for process in at_once) == [0, 78], said
    ended = work.wait()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert work.manifest("export") is not None
    lines = work.cluster.ask("squeue", "--noheader", "--states=all", "--format=%i %Z").splitlines()
    submitted = [line.split()[0] for line in lines if line.split()[1] == str(work.folder)]
    assert sorted(submitted) == sorted(work.job(task) for task in TASKS)


def test_a_killed_node_costs_the_steps_since_the_last_checkpoint(work: Work) -> None:
    work.submit(*LONG)
    work.wait_until(lambda: "checkpoint of step 40" in work.log("train"), "a checkpoint")
    node = work.cluster.ask("squeue", "--noheader", "--format=%N", f"--jobs={work.job('train')}").strip()
    work.cluster.kill_node(node)
    try:
        ended = work.wait()
    finally:
        work.cluster.start_node(node)
        work.cluster.wait_for_nodes()
    assert ended.returncode == 0, ended.stdout + ended.stderr + work.log("train")
    assert resumed(work.log("train")), work.log("train")
    assert "attempt 2" in ended.stdout


def test_a_time_limit_saves_and_the_next_job_goes_on(work: Work) -> None:
    """The training has no other checkpoint than the one that it saves before the limit."""
    work.configure("tasks: {train: {time: '3'}}")
    names = ("steps", "save_every_steps", "evaluate_every_steps")
    work.submit(*(f"--set=train.{name}=100000" for name in names))
    work.wait_until(lambda: bool(resumed(work.log("train"))), "an attempt that goes on")
    log = work.log("train")
    assert "exit code 75: this job is run again" in log
    assert "DUE TO TIME LIMIT" not in log
    assert resumed(log)[0] > 0, log
    assert re.search(r"train .*attempt [2-9]", work.call("status", RUN).stdout)
    assert work.call("cancel", RUN, "--now").returncode == 0
    work.wait_until(lambda: work.cluster.queue() == [], "the end of all jobs")


def test_a_requeue_by_the_cluster_goes_on_as_well(work: Work) -> None:
    work.submit(*LONG)
    work.wait_until(lambda: "checkpoint of step 40" in work.log("train"), "a checkpoint")
    work.cluster.ask("scontrol", "requeue", work.job("train"))
    followed = work.call("logs", RUN, "--task", "train", "--follow")
    assert followed.stdout.splitlines() == work.log("train").splitlines(), "to the end of the last attempt"
    ended = work.wait()
    assert ended.returncode == 0, ended.stdout + ended.stderr + work.log("train")
    assert resumed(work.log("train")), work.log("train")


_FAILING = """\
#!/usr/bin/env bash
# stands for Python: the stage ends with these codes first, with 75 further each time
case " $* " in *" --task=download-tokenizer "*)
  codes=(69 71 137 143 75 75 75) count=$(cat {counter} 2>/dev/null || echo 0)
  echo $((count + 1)) > {counter}
  if [ $count -lt ${{#codes[@]}} ]; then
    echo "$((100 * count))/1000" > "$ARGO_PROGRESS_FILE"; exit "${{codes[count]}}"
  fi
esac
exec {python} "$@"
"""


def test_every_code_of_the_retry_table_is_run_again_by_slurm(work: Work) -> None:
    """More often than the five times that the workflow allows failures, since attempts that came further are none."""
    failing = work.folder / "failing-python"
    failing.write_text(_FAILING.format(counter=work.folder / "counter", python=sys.executable))
    failing.chmod(0o755)
    work.configure(f"python: {failing}")
    done = work.run()
    assert done.returncode == 0, done.stdout + done.stderr
    again = re.findall(r"exit code (\d+): this job is run again", work.log("download-tokenizer"))
    assert again == ["69", "71", "137", "143", "75", "75", "75"]
    assert (work.folder / RUN / "download-tokenizer" / "attempts").read_text() == "5 600\n"
    assert re.search(r"download-tokenizer +Succeeded +attempt 8", done.stdout), done.stdout


def test_a_cancelled_run_saves_ends_and_goes_on_when_it_is_submitted_again(work: Work) -> None:
    work.submit(*LONG)
    work.wait_until(lambda: "checkpoint of step 40" in work.log("train"), "a checkpoint")
    assert work.call("cancel", RUN).returncode == 0
    ended = work.wait()
    assert ended.returncode == 75, ended.stdout + ended.stderr
    work.wait_until(lambda: work.cluster.queue() == [], "the end of all jobs")
    assert work.finished()["state"] == "failed"
    assert "this job is run again" not in work.log("train").splitlines()[-1]

    again = work.run(*LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert resumed(work.log("train"))


def test_a_job_that_somebody_cancels_is_not_run_again(work: Work) -> None:
    """``scancel`` sends the signal that also comes before a time limit; only after that one the job is run again."""
    work.submit(*LONG)
    work.wait_until(lambda: "checkpoint of step 40" in work.log("train"), "a checkpoint")
    work.cluster.ask("scancel", work.job("train"))
    ended = work.wait()
    assert ended.returncode == 75, ended.stdout + ended.stderr
    work.wait_until(lambda: work.cluster.queue() == [], "the end of all jobs")
    assert "this job is run again" not in work.log("train")
    assert "attempt 2" not in work.log("train")


def test_a_training_on_two_nodes_meets_through_slurms_variables(work: Work) -> None:
    done = work.run("--set", "train.nodes=2", "--set", "train.layout.data_parallel=2")
    assert done.returncode == 0, done.stdout + done.stderr + work.log("train")
    script = (work.folder / RUN / "slurm" / "train.sbatch").read_text()
    assert "#SBATCH --nodes=2" in script
    hosts = work.cluster.ask("scontrol", "show", "job", work.job("train"))
    assert "NumNodes=2" in hosts


def test_a_store_in_s3(work: Work, seaweed: SeaweedServer) -> None:
    """The jobs get the address and the keys of the server as every job gets variables, and no script holds them."""
    environ = seaweed.environ()
    store = f"{seaweed.url}/slurm"
    done = work.run("--store", store, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"exported model: {store}/exports/" in done.stdout
    files = [path for path in (work.folder / RUN).rglob("*") if path.is_file()]
    assert not [path for path in files if environ["AWS_SECRET_ACCESS_KEY"].encode() in path.read_bytes()]


def test_train_gets_the_gpus_that_it_asks_for(work: Work) -> None:
    """The node has four files for GPUs, so the job starts there and train says what it misses."""
    train = (
        "partition: gpu, gpu_type: a100, time: '1:00:00', constraint: scratch, account: lab, memory_gib: 3.5, cpus: 2"
    )
    work.configure(f"tasks: {{train: {{{train}}}}}")
    done = work.run("--set", "train.gpus=2", "--set", "train.layout.data_parallel=2")
    job = work.cluster.ask("scontrol", "show", "job", work.job("train"))
    for granted in (
        "Partition=gpu",
        "NodeList=g1",
        "gpu:a100:2",
        "Features=scratch",
        "Account=lab",
        "TimeLimit=01:00:00",
        "NumCPUs=2",
        "MinMemoryNode=3.50G",
    ):
        assert granted in job, job
    assert done.returncode == 70, done.stdout + done.stderr
    assert "train.gpus is 2: expected a GPU for local rank" in work.log("train")
    assert re.search(r"train +Failed +attempt 4; exit code 70: train", done.stdout), done.stdout


def test_a_task_without_retries_left_fails_the_run_and_its_readers(work: Work, tmp_path: Path) -> None:
    work.configure("defaults: {memory_gib: 2, cpus: 1}")  # data of one's own asks for more than these nodes have
    data = tmp_path / "chat.jsonl"
    data.write_text('{"messages": "no list"}\n' * 4)
    setting = f"data.sources=[{{name: mine, source: {{kind: directory, path: {data}}}}}]"
    done = work.run("--set", setting)
    assert done.returncode == 79, done.stdout + done.stderr
    assert work.finished()["failed_task"] == "pack"
    assert "export" in done.stdout and "Omitted" in done.stdout


def test_a_store_that_the_nodes_do_not_see_is_said_by_the_probe(work: Work) -> None:
    store = work.cluster.folder / HIDDEN / "store"
    done = work.run("--store", str(store))
    assert done.returncode == 78, done.stdout + done.stderr
    assert re.search(rf"a compute node cannot take part .*: store: there is no directory {store};", done.stderr)
    work.wait_until(lambda: work.cluster.queue() == [], "the end of all jobs")


def test_a_run_is_submitted_again_once_its_store_is_mended(work: Work) -> None:
    """The same id: what the first submission left, exit codes of all jobs among it, does not count any more."""
    work.configure("defaults: {cpus: 1}")
    hidden = work.folder / "store"
    hidden.symlink_to(work.cluster.folder / HIDDEN / "mended")
    (work.cluster.folder / HIDDEN / "mended").mkdir()
    assert work.run().returncode == 78
    work.wait_until(lambda: work.cluster.queue() == [], "the end of all jobs")
    hidden.unlink()
    hidden.mkdir()
    again = work.run()
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_run_that_waits_in_the_queue_is_not_submitted_again(work: Work) -> None:
    work.configure("defaults: {options: ['--hold']}")
    work.submit()
    first = {task: work.job(task) for task in TASKS}
    again = work.call("submit", "micro", "--runner", "slurm", "--run", RUN)
    assert again.returncode == 78, again.stdout + again.stderr
    assert f"has jobs that have not ended: probe ({first['probe']}, PENDING), " in again.stderr
    assert again.stderr.count("\n") == 1
    assert len(work.cluster.queue()) == len(TASKS)
    assert {task: work.job(task) for task in TASKS} == first
    assert work.call("cancel", RUN, "--now").returncode == 0
    assert work.cluster.queue() == []


def test_a_run_folder_that_the_nodes_do_not_see_is_said_too(work: Work) -> None:
    hidden = Work(work.cluster, work.cluster.folder / HIDDEN / "work")
    hidden.folder.mkdir(parents=True)
    done = hidden.run("--store", str(work.folder / "store"))
    assert done.returncode == 78, done.stdout + done.stderr
    assert "choose a --work folder on a file system that all nodes share" in done.stderr


@pytest.mark.parametrize(
    ("config", "setting", "sentence"),
    [
        ("defaults: {partition: nowhere}", "train.seed=1", "expected a partition of this cluster (gpu, main)"),
        ("", "train.steps=none", "train.steps"),
        ("", "train.gpus=2", "GPUs are asked for, but a node of partition main has at most 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(
    work: Work, config: str, setting: str, sentence: str
) -> None:
    work.configure(config)
    layout = ("--set", "train.layout.data_parallel=2") if "gpus" in setting else ()
    done = work.run("--set", setting, *layout)
    assert done.returncode == 78, done.stdout + done.stderr
    assert sentence in done.stderr
    assert work.cluster.queue() == [] and not (work.folder / RUN).exists()
