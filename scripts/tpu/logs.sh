#!/usr/bin/env bash
# Show what train says, line by line as it comes: worker 0, another one, or all of them.
# Usage: logs.sh [--config=pod.conf] [--all | --worker=N] [--slice=N] [--lines=100] [--once] [--dry_run]
#   --once      the last lines only, and leave
#   --dry_run   print each command, run none
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/tpu/pod.sh
. "$(dirname "$0")/pod.sh"
read_arguments "all worker= slice= lines= once" "$@"
load
worker=${FLAG_worker:-0} slice=${FLAG_slice:-0} follow=follow
[ "${FLAG_all:-no}" = no ] || worker=all slice=all
[ "${FLAG_once:-no}" = no ] || follow=once
[[ $worker =~ ^([0-9]+|all)$ && $slice =~ ^([0-9]+|all)$ && ${FLAG_lines:-100} =~ ^[0-9]+$ ]] ||
  fail 2 "not a number" "--worker, --slice or --lines" "for example --worker=3 --lines=50"
ssh_command "$slice" "$worker" "bash $REMOTE/host.sh logs ${FLAG_lines:-100} $follow"
# Else gcloud asks 64 hosts at a time, and the next ones only when these have ended: they never do.
if [ "$worker-$follow" = all-follow ]; then SSH+=(--batch-size=all); fi
run "${SSH[@]}" || fail 1 "the connection to $NAME ended" "slice $slice worker $worker" "the same command again; train goes on without it"
