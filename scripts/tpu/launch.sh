#!/usr/bin/env bash
# Start train on every host of the pod, detached: it goes on when this terminal is closed. logs.sh shows what it says.
# Usage: launch.sh [--config=pod.conf] [--dry_run]
#   --dry_run   print each command, run none
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/tpu/pod.sh
. "$(dirname "$0")/pod.sh"
read_arguments "" "$@"
load
launch=$(date -u +%Y%m%dT%H%M%S)-$$

arguments=() files=() SHIPPED=$HERE/../../gin_configs
for file in $GIN_FILES; do
  # A file that lies here is copied; any other name is looked up among the shipped ones by train itself.
  if [ -r "$file" ]; then
    files+=("$file")
    file=$(basename "$file")
  elif [[ $file != /* ]] && [ -d "$SHIPPED" ] && [ ! -r "$SHIPPED/$file" ]; then
    fail 2 "the gin file $file lies neither here nor among the shipped ones" "$CONFIG" "correct GIN_FILES; shipped: $(cd "$SHIPPED" && echo *.gin */)"
  fi
  arguments+=("--gin_file=$file")
done
[ ${#arguments[@]} -gt 0 ] || fail 2 "GIN_FILES names no gin file" "$CONFIG" "GIN_FILES=cpt.gin hardware/v5e_256.gin"
if [ -n "$MODULE" ]; then
  [ -r "$MODULE" ] || fail 2 "there is no such module" "$MODULE" "MODULE=my_tasks.py, or leave it empty"
  files+=("$MODULE")
  arguments+=("--module=$(basename "$MODULE")")
fi
twice=$(for file in ${files[@]+"${files[@]}"}; do basename "$file"; done | sort | uniq -d)
[ -z "$twice" ] || fail 2 "two files are named ${twice//$'\n'/ }, and all are copied into one folder" "$CONFIG" "rename one of them"
for binding in ${BINDINGS[@]+"${BINDINGS[@]}"}; do arguments+=("--gin.$binding"); done
arguments+=("--gin.RUN_DIR='$RUN_DIR'")

need_active
[ ${#files[@]} -eq 0 ] || copy_to_hosts_or_fail "${files[@]}"
if ! on_hosts "start train" "T_ELAINE_EXPECTED=$((HOSTS * SLICES)) bash $REMOTE/host.sh start $launch $(quoted "${arguments[@]}")"; then
  not_started=$NOT_OK
  # A pod where some hosts train and others do not only waits, and costs. What an earlier launch started is left alone.
  on_hosts "stop train where this launch started it" "bash $REMOTE/host.sh stop 10 $launch" || true
  NOT_OK=$not_started
  fail 1 "train did not start: $NOT_OK" "$NAME" "look with: $(host_shell); install.sh if nothing is installed"
fi
run sleep "$START_SECONDS"
if ! on_hosts "look after train" "bash $REMOTE/host.sh status"; then
  fail 1 "train ended within $START_SECONDS seconds: $NOT_OK" "$NAME" "logs.sh --all --once --config=$CONFIG"
fi
say "train runs on all hosts; metrics and checkpoints: $RUN_DIR"
say "next: logs.sh --config=$CONFIG, and resume.sh --config=$CONFIG to outlive preemptions"
