#!/usr/bin/env bash
# Install T-ELAINE on every host of the pod, the same versions everywhere, from a wheel or a git revision.
# Usage: install.sh [--config=pod.conf] [--dry_run]
#   --dry_run   print each command, run none
set -euo pipefail
# shellcheck source=scripts/tpu/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=scripts/tpu/pod.sh
. "$(dirname "$0")/pod.sh"
read_arguments "" "$@"
load

if [ -n "$WHEEL" ]; then
  [ -z "$REPOSITORY" ] || fail 2 "WHEEL and REPOSITORY are both given" "$CONFIG" "leave one of them empty"
  [ -r "$WHEEL" ] || fail 2 "there is no such wheel" "$WHEEL" "python -m build --wheel, then WHEEL=dist/…"
  CONSTRAINTS=${CONSTRAINTS:-$HERE/../../constraints.txt}
  source=(wheel "$(basename "$WHEEL")" "")
elif [ -n "$REPOSITORY" ]; then
  source=(git "$REPOSITORY" "$REVISION")
else
  fail 2 "neither WHEEL nor REPOSITORY is given" "$CONFIG" "WHEEL=dist/t_elaine-….whl or REPOSITORY=https://…"
fi
[ -z "$CONSTRAINTS" ] || [ -r "$CONSTRAINTS" ] || fail 2 "there is no such file of versions" "$CONSTRAINTS" "CONSTRAINTS=constraints.txt"
files=("$HERE/host.sh")
[ -z "$WHEEL" ] || files+=("$WHEEL")
[ -z "$CONSTRAINTS" ] || files+=("$CONSTRAINTS")

need_active
copy_to_hosts_or_fail "${files[@]}"
on_hosts_or_fail "install" "cp $REMOTE/incoming/host.sh $REMOTE/host.sh && bash $REMOTE/host.sh install $(quoted "${source[@]}" "$PYTHON" "$(basename "${CONSTRAINTS:-}")")" 3
same_versions
say "next: launch.sh --config=$CONFIG"
