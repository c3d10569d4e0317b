#!/usr/bin/env bash
# Ask Google Cloud for the pod of a config file as a queued resource, and wait until it is there.
# Usage: create.sh [--config=pod.conf] [--hours=N] [--no_wait] [--yes] [--dry_run]
#   --hours=N   show the cost for so many hours (else HOURS of the config)
#   --no_wait   leave as soon as the request is in the queue
#   --yes       do not ask before money is spent
#   --dry_run   print each command, run none
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/tpu/pod.sh
. "$(dirname "$0")/pod.sh"
read_arguments "hours= no_wait" "$@"
load
# What install.sh and launch.sh would refuse is mended before the pod costs anything.
for script in install launch; do "$HERE/$script.sh" "--config=$CONFIG" --dry_run >/dev/null; done

create=(gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}"
  "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
if [ "$SLICES" -eq 1 ]; then create+=("--node-id=$NAME"); else create+=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
case $CAPACITY in spot) create+=(--spot) ;; reserved) create+=(--reserved) ;; esac
[ -z "$VALID_UNTIL" ] || create+=("--valid-until-duration=$VALID_UNTIL")
[ -z "$SERVICE_ACCOUNT" ] || create+=("--service-account=$SERVICE_ACCOUNT")
[ -z "$NETWORK" ] || create+=("--network=$NETWORK")
[ -z "$SUBNETWORK" ] || create+=("--subnetwork=$SUBNETWORK")
[ "$INTERNAL_IPS" = no ] || create+=(--internal-ips)

# Without its bucket a pod can do nothing; far from it, each checkpoint is slow and costs traffic.
check_bucket() {
  local place look=(gcloud storage buckets describe "$BUCKET" "--project=$PROJECT" "--format=value(location)")
  if [ "$DRY_RUN" = yes ]; then
    quoted "${look[@]}"
    return
  fi
  place=$("${look[@]}" 2>"$SCRATCH/bucket" | tr '[:upper:]' '[:lower:]') ||
    fail 1 "the bucket cannot be seen: $(tail -n 1 "$SCRATCH/bucket")" "$BUCKET" "make it (docs/tpu_pod.md), or check BUCKET and your rights"
  case ${ZONE%-*} in
    "$place"*) ;; # the region, or the continent of a multi-region such as eu
    *) say "warning: $BUCKET lies in $place, the pod in ${ZONE%-*}: traffic between them is slow and may cost" ;;
  esac
}

show_cost
check_bucket
pod_state MISSING
if [ "$POD_STATE" != MISSING ]; then
  POD_MAY_EXIST=yes
  fail 1 "there is a queued resource $NAME already, it is $POD_STATE" "$ZONE of $PROJECT" "resume.sh goes on with it, delete.sh deletes it, or give another NAME"
fi
confirm "Create it?"
POD_MAY_EXIST=yes # from here on even an interrupted command may have made something
if ! run "${create[@]}" 2>"$SCRATCH/create"; then
  cat "$SCRATCH/create" >&2
  pod_state MISSING
  [ "$POD_STATE" != MISSING ] || POD_MAY_EXIST=no
  fail 1 "gcloud could not create $NAME (it is $POD_STATE now)" "$(quoted "${create[@]}")" "read gcloud's answer above: quota, a zone without this chip, permissions, or the TPU API is off (docs/tpu_pod.md)"
fi
if [ "${FLAG_no_wait:-no}" = yes ]; then
  say "$NAME is in the queue; from the moment that it is ACTIVE it costs $(hourly) $CURRENCY an hour. This deletes it:"
  quoted "${DELETE[@]}"
  exit 0
fi
wait_until_active
say "next: install.sh --config=$CONFIG"
