# shellcheck shell=bash disable=SC2034,SC2153
# The pod as gcloud sees it: its state, a command on all its hosts, which of them failed. Sourced after common.sh.

# pod_state ASSUMED: sets POD_STATE to what Google says, MISSING if there is none, ASSUMED in a dry run.
pod_state() {
  local try describe=(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" "--format=value(state.state)")
  if [ "$DRY_RUN" = yes ]; then
    quoted "${describe[@]}"
    POD_STATE=$1
    return
  fi
  for try in 1 2 3 4 5; do
    if POD_STATE=$("${describe[@]}" 2>"$SCRATCH/describe"); then
      POD_STATE=${POD_STATE:-UNKNOWN}
      return
    fi
    if grep -q NOT_FOUND "$SCRATCH/describe"; then
      POD_STATE=MISSING
      return
    fi
    sleep $((try * POLL_SECONDS / 10))
  done
  fail 1 "gcloud does not tell the state of $NAME" "$(tail -n 1 "$SCRATCH/describe")" "gcloud auth login; check PROJECT, ZONE and the network"
}

# The pod must be ACTIVE. One that only waits, or whose state nobody tells, may cost all the same.
need_active() {
  POD_MAY_EXIST=yes
  pod_state ACTIVE
  [ "$POD_STATE" != MISSING ] || POD_MAY_EXIST=no
  [ "$POD_STATE" = ACTIVE ] || fail 1 "$NAME is $POD_STATE, not ACTIVE" "$ZONE of $PROJECT" "create.sh makes and awaits it"
}

# node_states: the states of the nodes, one a line; a node that is gone says MISSING.
node_states() {
  local slice node
  for ((slice = 0; slice < SLICES; slice++)); do
    node=$NAME
    [ "$SLICES" -eq 1 ] || node=$NAME-$slice
    gcloud compute tpus tpu-vm describe "$node" "${WHERE[@]}" "--format=value(state)" 2>/dev/null || echo MISSING
  done
}

# Wait until the pod is ACTIVE; fails where it can never become so.
wait_until_active() {
  local last=''
  while :; do
    pod_state ACTIVE
    [ "$POD_STATE" = "$last" ] || say "$(date +%H:%M:%S) $NAME is $POD_STATE"
    last=$POD_STATE
    case $POD_STATE in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | MISSING)
        describe_failure
        fail 1 "$NAME is $POD_STATE, it will not become ACTIVE" "$(quoted "${WHERE[@]}")" "delete.sh, then create.sh; another zone, or CAPACITY"
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

describe_failure() {
  gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" "--format=yaml(state)" >&2 || true
}

# ssh_command NODE WORKER COMMAND: fills SSH with the command line.
ssh_command() {
  SSH=(gcloud compute tpus queued-resources ssh "$NAME" "${WHERE[@]}" "--node=$1" "--worker=$2")
  if [ "$INTERNAL_IPS" = yes ]; then SSH+=(--internal-ip); fi
  SSH+=("--command=$3")
}

# copy_to_hosts FILE…: into the folder incoming of every host.
copy_to_hosts() {
  local scp=(gcloud compute tpus queued-resources scp "$@" "$NAME:$REMOTE/incoming/" "${WHERE[@]}" --node=all --worker=all)
  if [ "$INTERNAL_IPS" = yes ]; then scp+=(--internal-ip); fi
  run "${scp[@]}"
}

# copy_to_hosts_or_fail FILE…: three tries; fresh hosts refuse connections for a minute.
copy_to_hosts_or_fail() {
  local try folder
  ssh_command all all "mkdir -p $REMOTE/incoming"
  folder=("${SSH[@]}")
  for try in 1 2 3; do
    if run "${folder[@]}" && copy_to_hosts "$@"; then return; fi
    say "copying to the hosts failed (try $try of 3)"
    [ "$try" -eq 3 ] || sleep $((POLL_SECONDS / 2))
  done
  fail 1 "files could not be copied to all hosts" "$NAME" "gcloud names the worker above; the same command again goes on"
}

# on_hosts WHAT COMMAND: run it on every host; true if each of them reported ok. Their lines end up in $SCRATCH/said,
# the names of those that did not in NOT_OK.
on_hosts() {
  local slice worker line name code=0
  NOT_OK=''
  ssh_command all all "$2"
  if [ "$DRY_RUN" = yes ]; then
    quoted "${SSH[@]}"
    return 0
  fi
  say "$1 on $((HOSTS * SLICES)) hosts"
  "${SSH[@]}" >"$SCRATCH/said" 2>"$SCRATCH/errors" || code=$?
  grep -v '^t-elaine-host: ' "$SCRATCH/said" || true
  for ((slice = 0; slice < SLICES; slice++)); do
    for ((worker = 0; worker < HOSTS; worker++)); do
      name="slice $slice worker $worker"
      line=$(grep "^t-elaine-host: [a-z]* slice=$slice worker=$worker " "$SCRATCH/said" | tail -n 1) || true
      case $line in
        't-elaine-host: ok '*) ;;
        '') NOT_OK="$NOT_OK${NOT_OK:+; }$name gave no answer" ;;
        *) NOT_OK="$NOT_OK${NOT_OK:+; }$name: ${line#*" worker=$worker "}" ;;
      esac
    done
  done
  [ -z "$NOT_OK" ] || tail -n 20 "$SCRATCH/errors" >&2
  if [ -z "$NOT_OK" ] && [ "$code" -ne 0 ]; then say "gcloud ended with $code although every host reported ok"; fi
  [ -z "$NOT_OK" ]
}

# on_hosts_or_fail WHAT COMMAND TRIES: again, where a host did not do it (fresh hosts refuse ssh for a minute).
on_hosts_or_fail() {
  local try
  for ((try = 1; try <= $3; try++)); do
    if on_hosts "$1" "$2"; then return; fi
    say "$1: $NOT_OK"
    [ "$try" -eq "$3" ] || sleep $((POLL_SECONDS / 2))
  done
  fail 1 "$1 failed after $3 tries: $NOT_OK" "$NAME" "look with: $(host_shell)"
}

# A shell on the first host that failed, as a command.
host_shell() {
  local slice=0 worker=0
  if [[ $NOT_OK =~ slice\ ([0-9]+)\ worker\ ([0-9]+) ]]; then slice=${BASH_REMATCH[1]} worker=${BASH_REMATCH[2]}; fi
  quoted gcloud compute tpus queued-resources ssh "$NAME" "${WHERE[@]}" "--node=$slice" "--worker=$worker"
}

# Hosts with different versions of JAX or libtpu hang at the first step: refuse them now.
same_versions() {
  local versions
  [ "$DRY_RUN" = no ] || return 0
  versions=$(sed -n 's/^t-elaine-host: ok slice=[0-9]* worker=[0-9]* [^ ]* //p' "$SCRATCH/said" | sort | uniq -c)
  [ "$(printf '%s\n' "$versions" | wc -l)" -eq 1 ] ||
    fail 1 "the hosts have different versions: ${versions//$'\n'/;}" "$NAME" "pin them with CONSTRAINTS and install again"
  say "installed on every host: $(printf '%s' "$versions" | sed 's/^ *[0-9]* //')"
}
