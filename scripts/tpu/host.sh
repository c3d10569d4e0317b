#!/usr/bin/env bash
# Runs on each host of a TPU pod (install.sh copies it there) or of a GPU cluster (scripts/gpu/ssh.sh sends it there):
# host.sh install|start|status|stop|logs …
# The last line of each answer is "t-elaine-host: ok|failed slice=S worker=W NAME …", which the scripts at home count.
set -uo pipefail
ROOT=${T_ELAINE_POD:-$HOME/t-elaine-pod}
VENV=${T_ELAINE_VENV:-$ROOT/venv}
LOG=$ROOT/logs/$(hostname).log
STAGE=start

# Which slice and worker this is: TPU VMs say it in their metadata, other machines are told.
metadata() {
  curl -sf -m 10 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}
SLICE=0 WORKER=${T_ELAINE_PROCESS:-}
if [ -z "$WORKER" ]; then
  SLICE=$(metadata tpu-env 2>/dev/null | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\).*/\1/p")
  WORKER=$(metadata agent-worker-number 2>/dev/null)
fi
if [ -z "$WORKER" ]; then WORKER=$(hostname | sed -n 's/.*-w-\([0-9]*\)$/\1/p'); fi

answer() { printf 't-elaine-host: %s slice=%s worker=%s %s %s\n' "$1" "${SLICE:-0}" "${WORKER:-0}" "$(hostname)" "$2"; }
give_up() {
  answer failed "$STAGE: $1"
  exit 1
}

# step NAME COMMAND…: output goes to the install log, its end to the caller if it fails.
step() {
  STAGE=$1
  shift
  if ! "$@" >>"$ROOT/logs/install.log" 2>&1; then
    tail -n 5 "$ROOT/logs/install.log" | sed "s/^/$(hostname): /" >&2
    give_up "see $ROOT/logs/install.log"
  fi
}

fetch_repository() { # URL REVISION
  [ -d "$ROOT/source/.git" ] || git clone --quiet "$1" "$ROOT/source" || return
  git -C "$ROOT/source" remote set-url origin "$1" && git -C "$ROOT/source" fetch --quiet origin "$2" &&
    git -C "$ROOT/source" checkout --quiet --detach FETCH_HEAD
}

# install git URL REVISION PYTHON CONSTRAINTS | install wheel FILE "" PYTHON CONSTRAINTS   (CONSTRAINTS: file in incoming, or "")
install() {
  local kind=$1 from=$2 revision=$3 python=$4 constraints=${5:+$ROOT/incoming/$5} package
  export PATH=$HOME/.local/bin:$PATH
  is_running && give_up "train is at work here; host.sh stop ends it"
  : >"$ROOT/logs/install.log"
  command -v uv >/dev/null || step uv python3 -m pip install --user --quiet uv
  step python uv venv --quiet --allow-existing --python "$python" "$VENV"
  if [ "$kind" = git ]; then
    step repository fetch_repository "$from" "$revision"
    package="t-elaine[tpu] @ file://$ROOT/source"
    constraints=${constraints:-$ROOT/source/constraints.txt}
  else
    package="t-elaine[tpu] @ file://$ROOT/incoming/$from"
  fi
  step packages uv pip install --quiet --python "$VENV/bin/python" --reinstall-package t-elaine \
    --constraint "$constraints" "$package"
  step import "$VENV/bin/python" -c 'import t_elaine.train'
  answer ok "$("$VENV/bin/python" -c '
import importlib.metadata
print(*(f"{name}={importlib.metadata.version(name)}" for name in ("t-elaine", "jax", "libtpu")))')"
}

# A process of the run's own session that is not a zombie (pgrep would count those).
# shellcheck disable=SC2009
is_running() { [ -s "$ROOT/run/pid" ] && ps -o stat= -s "$(cat "$ROOT/run/pid")" | grep -qv '^Z'; }

# start LAUNCH ARGUMENTS OF TRAIN…: detached, so that it outlives the connection; its exit code lands in run/exit.
start() {
  local launch=$1
  shift
  is_running && give_up "train is at work here already, process $(cat "$ROOT/run/pid")"
  [ -x "$VENV/bin/python" ] || give_up "nothing is installed here"
  rm -f "$ROOT/run/exit"
  echo "$launch" >"$ROOT/run/launch"
  {
    # SIGTERM is for train; this shell stays to write down how train ended.
    printf '#!/usr/bin/env bash\ntrap : TERM\ncd %q || exit 1\n' "$ROOT/incoming"
    printf '%q ' "$VENV/bin/python" -m t_elaine.train "$@"
    printf '\necho $? >%q\n' "$ROOT/run/exit"
  } >"$ROOT/run/command.sh"
  printf '== %s %s\n' "$(date -u +%FT%TZ)" "$*" >>"$LOG"
  setsid nohup bash "$ROOT/run/command.sh" >>"$LOG" 2>&1 </dev/null &
  echo $! >"$ROOT/run/pid"
  answer ok "started, process $!"
}

status() {
  if is_running; then
    answer ok running
  elif [ -s "$ROOT/run/exit" ]; then
    tail -n 5 "$LOG" | sed "s/^/$(hostname): /"
    answer failed "train ended with $(cat "$ROOT/run/exit")"
  else
    answer failed "train is not at work"
  fi
}

# stop SECONDS [LAUNCH]: SIGTERM, upon which train saves a checkpoint; SIGKILL after so many seconds. With LAUNCH, only
# what that launch started.
stop() {
  local left=${1:-600} group
  if [ -n "${2:-}" ] && [ "$2" != "$(cat "$ROOT/run/launch" 2>/dev/null)" ]; then
    answer ok "left alone"
    return
  fi
  is_running || {
    answer ok "nothing was running"
    return
  }
  group=$(cat "$ROOT/run/pid")
  kill -TERM "-$group"
  while is_running && [ "$left" -gt 0 ]; do
    sleep 1
    left=$((left - 1))
  done
  if is_running; then
    kill -KILL "-$group"
    answer ok "did not end in time and was killed"
  else
    answer ok "ended with $(cat "$ROOT/run/exit" 2>/dev/null)"
  fi
}

logs() { # LINES follow|once
  if [ "$2" = follow ]; then tail -n "$1" -F "$LOG"; else tail -n "$1" "$LOG"; fi | sed -u "s/^/$(hostname): /"
}

mkdir -p "$ROOT/incoming" "$ROOT/logs" "$ROOT/run"
case ${1:-} in
  install | start | status | stop | logs) "$@" ;;
  *) give_up "usage: host.sh install|start|status|stop|logs" ;;
esac
