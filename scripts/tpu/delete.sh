#!/usr/bin/env bash
# Delete the pod of a config file, its nodes and its place in the queue, and look whether they are gone.
# Usage: delete.sh [--config=pod.conf] [--stop] [--yes] [--dry_run]
#   --stop      let train save a checkpoint and end first
#   --yes       do not ask
#   --dry_run   print each command, run none
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/tpu/pod.sh
. "$(dirname "$0")/pod.sh"
read_arguments "stop" "$@"
load

POD_MAY_EXIST=yes
pod_state ACTIVE
if [ "$POD_STATE" = MISSING ]; then
  say "there is no queued resource $NAME in $ZONE of $PROJECT"
  exit 0
fi
confirm "Delete $NAME ($POD_STATE)?"
if [ "${FLAG_stop:-no}" = yes ] && [ "$POD_STATE" = ACTIVE ]; then
  on_hosts "stop train" "bash $REMOTE/host.sh stop 600" || say "not stopped: $NOT_OK"
fi
for try in 1 2 3; do
  if run "${DELETE[@]}"; then break; fi
  say "gcloud did not delete $NAME (try $try of 3)"
  sleep $((POLL_SECONDS / 2))
done
pod_state MISSING
[ "$POD_STATE" = MISSING ] || fail 1 "$NAME is still there, it is $POD_STATE" "$ZONE of $PROJECT" "the command below, or the console: https://console.cloud.google.com/compute/tpus"
POD_MAY_EXIST=no
say "$NAME is gone; $RUN_DIR stays"
