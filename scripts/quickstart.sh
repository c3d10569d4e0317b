#!/usr/bin/env bash
# The whole road on the shipped samples, offline: prepare, train, SIGKILL, resume, evaluate, export with proof, report.
# Usage: scripts/quickstart.sh [RUN_DIR]     needs t-elaine on the PATH (make quickstart sees to that)
set -euo pipefail
RUN=${1:-runs/quickstart}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} HF_HUB_OFFLINE=1 TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
files=(--gin_file=cpt.gin --gin_file=quickstart.gin "--gin.RUN_DIR='$RUN'")
say() { printf '\n== %s\n' "$*"; }

refuse() { printf 'error: %s\nwhere: %s\nmend: %s\n' "$1" "$RUN" "$2" >&2; exit 2; }
if [ $# -gt 0 ] && [ -e "$RUN" ]; then refuse "the folder is there already" "name a new one"; fi
if [ -e "$RUN/.lock" ] && command -v flock >/dev/null && ! flock -n "$RUN/.lock" true; then refuse "a run is at work there" "wait for it to end"; fi
rm -rf "$RUN"
say "1/6 prepare: the shipped samples become token stores"
t-elaine prepare --gin_file=quickstart_data.gin

say "2/6 train, and a SIGKILL once a checkpoint stands"
t-elaine train "${files[@]}" &
pid=$!
trap 'kill -9 $pid 2>/dev/null || true' EXIT
until compgen -G "$RUN/checkpoints/*/digests.json" >/dev/null; do
  kill -0 $pid 2>/dev/null || { echo "training ended before it could be killed"; wait $pid; exit 1; }
  sleep 0.2
done
kill -9 $pid
wait $pid 2>/dev/null || true
trap - EXIT
echo "killed with SIGKILL; checkpoints: $(cd "$RUN/checkpoints" && echo *)"

say "3/6 train again: the same command goes on from the checkpoint"
t-elaine train "${files[@]}"

say "4/6 evaluate: bits per byte and exam questions, an early checkpoint beside the last"
t-elaine evaluate --gin_file=quickstart_evaluate.gin --checkpoint="$RUN" --parent="$RUN/checkpoints/20"

say "5/6 export to Hugging Face format, with proof"
t-elaine export --checkpoint="$RUN" --to="$RUN/export" --overwrite \
  '--gin.export.card=@Card()' "--gin.Card.licence='apache-2.0'"

say "6/6 report"
t-elaine report "$RUN"
