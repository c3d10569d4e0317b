#!/usr/bin/env bash
# Train on GPU machines that are reached by plain ssh: one process a machine, which sees all its GPUs.
# Usage: ssh.sh start|status|logs|stop --hosts=FILE [--venv=PATH] [--folder=PATH] [--port=N] [--dry_run] [-- ARGUMENTS OF TRAIN]
#   --hosts     a machine a line, as ssh knows it; the others reach the first one, by that name, at --port
#   --venv      the environment with t-elaine[cuda13] on the machines (~/t-elaine-pod/venv)
#   --folder    where the logs and the run's records lie on the machines (~/t-elaine-pod)
#   --port      the port of process 0 (61440)
#   --dry_run   print each command, run none
# RUN_DIR (--gin.RUN_DIR=…) and the stores must be the same for all machines: a shared file system or gs://.
# start returns at once; train goes on when the connection ends. logs prints the last lines of all machines.
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/../tpu/common.sh"
verb=${1:---help}
case $verb in
  start | status | logs | stop) shift ;;
  --help | -h) usage && exit 0 ;;
  *) fail 2 "unknown command $verb" "$0" "start, status, logs or stop" ;;
esac
ours=() NOT_OK=''
while [ $# -gt 0 ]; do
  case $1 in
    --) shift && break ;;
    *) ours+=("$1") && shift ;;
  esac
done
read_arguments "hosts= venv= folder= port=" ${ours[@]+"${ours[@]}"}
port=${FLAG_port:-61440}
[ -n "${FLAG_hosts:-}" ] || fail 2 "no machines are given" "$0" "--hosts=FILE, a machine a line"
[ -r "$FLAG_hosts" ] || fail 2 "there is no such file" "$FLAG_hosts" "--hosts=FILE, a machine a line"
[[ $port =~ ^[0-9]+$ ]] || fail 2 "--port=$port is no number" "$0" "--port=61440"
hosts=()
while read -r host _; do
  case $host in '' | '#'*) continue ;; -*) fail 2 "$host is no machine" "the file of --hosts" "a machine a line" ;; esac
  hosts+=("$host")
done <"$FLAG_hosts"
[ ${#hosts[@]} -gt 0 ] || fail 2 "no machine stands there" "$FLAG_hosts" "a machine a line"
[ "$(printf '%s\n' "${hosts[@]}" | sort | uniq -d | wc -l)" -eq 0 ] || fail 2 "a machine stands there twice" "$FLAG_hosts" "one process a machine"
if [ "$verb" = start ] && [ $# -eq 0 ]; then
  fail 2 "train is given no gin file" "$0" "ssh.sh start --hosts=FILE -- --gin_file=cpt.gin --gin_file=hardware/gpu_80gb_8.gin"
fi

names=$(printf '%s,' "${hosts[@]#*@}")
# What every process is told: the same words as the fields of Hosts (docs/config.md).
told=("T_ELAINE_COORDINATOR=${hosts[0]#*@}:$port" "T_ELAINE_PROCESSES=${#hosts[@]}" "T_ELAINE_EXPECTED=${#hosts[@]}" "T_ELAINE_HOSTS=${names%,}")
[ -z "${FLAG_venv:-}" ] || told+=("T_ELAINE_VENV=$FLAG_venv")
[ -z "${FLAG_folder:-}" ] || told+=("T_ELAINE_POD=$FLAG_folder")

# on_each COMMAND: host.sh with it on every machine at once; sets NOT_OK to those that did not report ok.
on_each() {
  local number line ssh
  NOT_OK=''
  for ((number = 0; number < ${#hosts[@]}; number++)); do
    ssh=(ssh -o BatchMode=yes -o ConnectTimeout=20 "${hosts[number]}" "env $(quoted "T_ELAINE_PROCESS=$number" "${told[@]}") bash -s -- $1")
    if [ "$DRY_RUN" = yes ]; then
      echo "$(quoted "${ssh[@]}") <$(quoted "$HERE/host.sh")"
    else
      "${ssh[@]}" <"$HERE/host.sh" >"$SCRATCH/said-$number" 2>&1 3>&- &
    fi
  done
  [ "$DRY_RUN" = no ] || return 0
  wait
  for ((number = 0; number < ${#hosts[@]}; number++)); do
    grep -v '^t-elaine-host: ' "$SCRATCH/said-$number" || true
    line=$(grep '^t-elaine-host: ' "$SCRATCH/said-$number" | tail -n 1) || true
    case $line in
      't-elaine-host: ok '*) say "${hosts[number]}: ${line#*" worker=$number "}" ;;
      '') NOT_OK="$NOT_OK${NOT_OK:+; }${hosts[number]} gave no answer" ;;
      *) NOT_OK="$NOT_OK${NOT_OK:+; }${hosts[number]}: ${line#*" worker=$number "}" ;;
    esac
  done
  [ -z "$NOT_OK" ]
}

case $verb in
  start)
    launch=$(date -u +%Y%m%dT%H%M%S)-$$
    if ! on_each "start $launch $(quoted "$@")"; then
      not_started=$NOT_OK
      # Those that started would only wait for the others. What an earlier start began is left alone.
      on_each "stop 10 $launch" || true
      fail 1 "train did not start: $not_started" "$FLAG_hosts" "mend it there and start again"
    fi
    say "train starts on ${#hosts[@]} machines; ssh.sh status and ssh.sh logs tell how it goes"
    ;;
  status) on_each status || fail 1 "train does not run everywhere: $NOT_OK" "$FLAG_hosts" "ssh.sh logs; ssh.sh stop, then ssh.sh start: it goes on from the last checkpoint" ;;
  logs) on_each "logs 100 once" >"$SCRATCH/logs" || true && cat "$SCRATCH/logs" ;;
  stop) on_each "stop 600" || fail 1 "not stopped everywhere: $NOT_OK" "$FLAG_hosts" "the same command again" ;;
esac
