#!/usr/bin/env bash
# Plans recipe micro here, then submits a job for each task that has something to do: ./submit.sh RUN_ID [FOLDER]
# FOLDER (./RUN_ID) gets logs, progress and the ids of the jobs; it and the store must be there on every node.
set -Eeuo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "$0")" && pwd)
run=${1:?usage: submit.sh RUN_ID [FOLDER]} folder=${2:-$PWD/$1}
mkdir -p "$folder/logs" "$folder/plan/artifacts"
folder=$(cd "$folder" && pwd)

# of two submissions at once one is refused; mkdir holds on every shared file system, locks do not
if ! said=$(LC_ALL=C mkdir "$folder/submitting" 2>&1); then
  if [ -d "$folder/submitting" ]; then
    by=$(cat "$folder/submitting/by" 2> /dev/null) || by="another process"
    said="run $run is being submitted already, by $by; wait for it, or remove $folder/submitting if it is gone"
  elif [[ $said == *"File exists"* ]]; then
    said="run $run was being submitted a moment ago; try again"
  fi
  echo "$said" >&2
  exit 78
fi
jobs=""  # the list of the jobs that were submitted and are not yet a run
leave() {
  [ -z "$jobs" ] || cut -f 2 "$jobs" | xargs -r scancel || :  # never half a run
  rm -rf "$folder/submitting"
}
trap leave EXIT
echo "process $$ of $(id -un) on $(uname -n)" > "$folder/submitting/by"

if [ -s "$folder/jobs" ]; then  # beside live jobs of an earlier submission, new ones would do the same work twice
  states=$(squeue --noheader --format='%i %T' --jobs="$(cut -f 2 "$folder/jobs" | paste -sd , -)" 2>&1) ||
    [[ $states == *"Invalid job id"* ]] || { echo "squeue: $states" >&2; exit 69; }
  live=""
  while read -r task id; do
    state=$(sed -n "s/^$id //p" <<< "$states")
    # a job that left its exit code is past its last line
    if [[ $state =~ ^(RUNNING|COMPLETING)$ && -e $folder/$task/exit ]]; then continue; fi
    live+=${state:+, $task ($id, $state)}
  done < "$folder/jobs"
  if [ -n "$live" ]; then
    echo "run $run has jobs that have not ended: ${live#, }; wait for them, or cancel the run" >&2
    exit 78
  fi
fi

STAGECOACH_ARTIFACTS=$folder/plan/artifacts python -m stagecoach_workflows.plan --store=s3://stagecoach --recipe-base64="$(< "$here/recipe.base64")" --set= --run="$run" --workflow=stagecoach-micro-c9382fe38d --created=0 --runner=slurm

plan() { cat "$folder/plan/artifacts/$1"; }
declare -A after  # task -> ids of the jobs that have to end well before its readers start

job() {  # NAME DEPENDENCY [OPTION ...] -> its id
  local id
  rm -f "$folder/$1/exit" "$folder/$1/progress"  # of an earlier submission
  id=$(sbatch --parsable --output="$folder/logs/$1.log" ${2:+--dependency="$2"} "${@:3}" "$here/$1.sbatch" "$run" "$folder")
  printf '%s\t%s\n' "$1" "${id%%;*}" >> "$jobs"
  printf '%s' "${id%%;*}"
}

submit() {  # TASK MUTEX READS ...
  local task=$1 mutex=$2 ids="" dependency options=()
  for other in "${@:3}"; do ids+=" ${after[$other]}"; done
  after[$task]=$ids
  [ "$(plan "decision-$task")" = run ] || return 0
  dependency=$(tr -s ' ' '\n' <<< "$ids" | sort -un | sed '/^$/d' | paste -sd : -)
  dependency=${dependency:+afterok:$dependency}
  # two runs that want the same training: the second one waits, then finds it done
  if [ -n "$mutex" ]; then dependency=${dependency:+$dependency,}singleton options=(--job-name="$mutex"); fi
  after[$task]=$(job "$task" "$dependency" ${options+"${options[@]}"})
}

if ! grep -qsx run "$folder"/plan/artifacts/decision-*; then
  : >> "$folder/jobs"
  echo "nothing to do" >&2
  exit 0
fi

# the list of an earlier submission stays until this one is accepted
jobs=$folder/jobs.new
: > "$jobs"
after[plan]=$(job probe '')
mv "$jobs" "$folder/jobs"
jobs=$folder/jobs
submit download-model '' plan
submit download-tokenizer '' plan
submit download-data-demo '' plan
submit convert '' download-model download-tokenizer
submit shard '' convert
submit pack '' download-tokenizer download-data-demo
submit train "stagecoach-train-$(plan train-key)" shard pack download-tokenizer
submit export '' train convert download-tokenizer pack
job notify "afterany:$(cut -f 2 "$jobs" | paste -sd : -)" > /dev/null
submitted=$jobs jobs=""
cat "$submitted"
