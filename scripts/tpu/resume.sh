#!/usr/bin/env bash
# Keep a run going until it is finished: make the pod anew when it was taken away, install, launch, look again.
# Usage: resume.sh [--config=pod.conf] [--hours=N] [--delete] [--yes] [--dry_run]
#   --delete    delete the pod once nothing is left to do
#   --yes       do not ask before money is spent
#   --dry_run   print each command of one round after a preemption, run none
# What is left to do is read from status.json in the run's folder, not from exit codes. A run that stopped itself is tried
# once more, since the loss of a host is such a stop too; where that brings no step further, it is left to you.
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/tpu/pod.sh
. "$(dirname "$0")/pod.sh"
read_arguments "hours= delete" "$@"
load
same=("--config=$CONFIG")
[ "$DRY_RUN" = no ] || same+=(--dry_run)
tries=0 stopped_at=

# run_status: sets RUN_STATE (running, preempted, stopped, finished, none), RUN_REASON and RUN_STEP.
run_status() {
  local cat=(gcloud storage cat "$RUN_DIR/status.json" "--project=$PROJECT") try
  RUN_STATE=none RUN_REASON='' RUN_STEP=''
  if [ "$DRY_RUN" = yes ]; then
    quoted "${cat[@]}"
    return
  fi
  for try in 1 2 3 4 5; do
    if "${cat[@]}" >"$SCRATCH/status" 2>"$SCRATCH/errors"; then
      RUN_STATE=$(sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$SCRATCH/status")
      RUN_STEP=$(sed -n 's/.*"step": *\([0-9]*\).*/\1/p' "$SCRATCH/status")
      RUN_REASON=$(sed -n 's/.*"reason": *"\(.*\)",\{0,1\}$/\1/p' "$SCRATCH/status")
      return
    fi
    # No run has written there yet: a new one begins.
    if grep -qi 'matched no objects' "$SCRATCH/errors"; then return; fi
    sleep $((try * POLL_SECONDS / 10))
  done
  fail 1 "status.json cannot be read: $(tail -n 1 "$SCRATCH/errors")" "$RUN_DIR" "check BUCKET and your rights to read it"
}

leave() { # CODE TEXT
  say "$2"
  if [ "${FLAG_delete:-no}" = yes ]; then
    "$HERE/delete.sh" "${same[@]}" --yes
  else
    say "the pod is still there and costs $(hourly) $CURRENCY an hour. This deletes it:"
    quoted "${DELETE[@]}"
  fi
  POD_MAY_EXIST=no # gone, or told
  exit "$1"
}

another_try() {
  tries=$((tries + 1))
  [ "$tries" -le "$MAX_TRIES" ] || fail 1 "given up after $MAX_TRIES tries: $1" "$NAME" "logs.sh --all --once --config=$CONFIG; then mend it, or raise MAX_TRIES"
  say "$(date +%H:%M:%S) try $tries of $MAX_TRIES: $1"
}

# in_turn SCRIPT…: one after the other; where one fails (a preemption in its midst, no capacity) the next round looks
# again. Settings that are wrong (2) and Ctrl-C (130) end it all.
in_turn() {
  local script code
  for script in "$@"; do
    code=0
    case $script in
      delete | create) "$HERE/$script.sh" "${same[@]}" --yes || code=$? ;;
      *) "$HERE/$script.sh" "${same[@]}" || code=$? ;;
    esac
    case $code in
      0) ;;
      1) say "$script.sh failed" && return ;;
      *) exit "$code" ;;
    esac
  done
}

make_anew() { # WHY STATE
  another_try "$1"
  if [ "$2" = MISSING ]; then in_turn create install launch; else in_turn delete create install launch; fi
}

# True if train does not run everywhere, three looks in a row: one lost connection is no reason to act.
train_is_gone() {
  local look
  for look in 1 2 3; do
    if on_hosts "look after train" "bash $REMOTE/host.sh status" >"$SCRATCH/look"; then return 1; fi
    [ "$look" -eq 3 ] || sleep $((POLL_SECONDS / 4))
  done
}

start_anew() {
  another_try "train does not run: $NOT_OK"
  on_hosts "stop what is left of it" "bash $REMOTE/host.sh stop 60" || true
  in_turn install launch
}

# What they refuse is told before money is spent.
for script in install launch; do "$HERE/$script.sh" "--config=$CONFIG" --dry_run >/dev/null; done
show_cost
if [ "$DRY_RUN" = yes ]; then
  run_status
  pod_state SUSPENDED
  make_anew "the pod was preempted" SUSPENDED
  exit 0
fi
confirm "Keep it running until the run is finished?"
POD_MAY_EXIST=yes # whoever asks for this has a pod, or has one made
while :; do
  run_status
  case $RUN_STATE:$RUN_REASON in
    finished:*) leave 0 "the run is finished" ;;
    stopped:"chip hours") leave 1 "the run has used up its max_chip_hours at step $RUN_STEP" ;;
  esac
  pod_state ACTIVE
  case $POD_STATE in
    ACTIVE)
      if node_states | grep -qv '^READY$'; then
        make_anew "a node was taken away" ACTIVE
      elif train_is_gone; then
        run_status # it may just have ended
        [ "$RUN_STATE" != finished ] || continue
        if [ "$RUN_STATE" = stopped ] && [ "$RUN_STEP" = "$stopped_at" ]; then
          leave 1 "the run stopped itself twice at step $RUN_STEP: $RUN_REASON"
        fi
        if [ "$RUN_STATE" = stopped ]; then stopped_at=$RUN_STEP; fi
        start_anew
      fi
      ;;
    SUSPENDED | FAILED | MISSING) make_anew "the pod is $POD_STATE" "$POD_STATE" ;;
    *) say "$(date +%H:%M:%S) $NAME is $POD_STATE" ;;
  esac
  sleep "$POLL_SECONDS"
done
