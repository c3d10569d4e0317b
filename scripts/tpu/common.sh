# shellcheck shell=bash disable=SC2034,SC2153
# (variables are used, and set, by the scripts that source this file)
# What all scripts here share: the config file, messages, printed commands, cost, the state of the pod.
# Sourced, not run. Plain bash (3.2, as on macOS), no other tool than gcloud, awk, sed, grep.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REMOTE=t-elaine-pod # folder on the hosts, in the home of the user that gcloud logs in as
KEYS=(PROJECT ZONE NAME ACCELERATOR SLICES CAPACITY RUNTIME VALID_UNTIL SERVICE_ACCOUNT NETWORK SUBNETWORK INTERNAL_IPS
  PRICE_PER_CHIP_HOUR CURRENCY HOURS WHEEL REPOSITORY REVISION CONSTRAINTS PYTHON BUCKET RUN_DIR GIN_FILES BINDING MODULE
  POLL_SECONDS START_SECONDS MAX_TRIES)
NEEDED=(PROJECT ZONE NAME ACCELERATOR CAPACITY PRICE_PER_CHIP_HOUR BUCKET)
CONFIG=pod.conf DRY_RUN=no YES=no POD_MAY_EXIST=no BINDINGS=()
POD_STATE='' CHIPS=0 HOSTS=0
exec 3>&2 # a trap may run while a command's errors are redirected
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/t-elaine.XXXXXX")

# --- messages -------------------------------------------------------------------------------------------------------

# fail CODE WHAT WHERE MEND: 2 = something to mend in the settings, 1 = the cloud or a host failed.
fail() {
  printf 'error: %s\nwhere: %s\nmend: %s\n' "$2" "$3" "$4" >&2
  exit "$1"
}

say() { if [ "$DRY_RUN" = yes ]; then printf '# %s\n' "$*"; else printf '%s\n' "$*"; fi; }

at_exit() {
  local code=$?
  trap - EXIT INT TERM
  rm -rf "$SCRATCH"
  if [ "$code" -ne 0 ] && [ "$POD_MAY_EXIST" = yes ] && [ "$DRY_RUN" = no ]; then
    {
      echo "$NAME may still be there, or in the queue, and cost $(hourly) $CURRENCY an hour. This deletes it:"
      echo "  $(quoted "${DELETE[@]}")"
    } >&3
  fi
  exit "$code"
}
trap at_exit EXIT
trap 'echo "interrupted" >&3; exit 130' INT
trap 'echo "terminated" >&3; exit 143' TERM

# --- commands -------------------------------------------------------------------------------------------------------

# A command line that can be pasted into a shell.
quoted() {
  local word out='' mark="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$mark}'" ;;
    esac
    out="$out${out:+ }$word"
  done
  printf '%s\n' "$out"
}

# Run a command, or in a dry run only print it.
run() {
  if [ "$DRY_RUN" = yes ]; then
    quoted "$@"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# --- settings -------------------------------------------------------------------------------------------------------

# read_arguments EXTRA "$@": EXTRA lists the flags of this script beside the common ones; theirs go into FLAG_<name>.
read_arguments() {
  local extra=$1 argument name
  shift
  for argument in "$@"; do
    name=${argument%%=*}
    name=${name#--}
    case $argument in
      --config=*) CONFIG=${argument#*=} ;;
      --dry_run | --dry-run) DRY_RUN=yes ;;
      --yes) YES=yes ;;
      --help | -h) usage && exit 0 ;;
      *)
        case " $extra " in
          *" $name= "*) [ "$argument" != "--$name" ] || fail 2 "--$name needs a value" "$0" "--$name=VALUE" ;;
          *" $name "*) [ "$argument" = "--$name" ] || fail 2 "--$name takes no value" "$0" "--$name" ;;
          *) fail 2 "unknown argument $argument" "$0" "flags: --config=FILE --dry_run --yes$(flags_of "$extra")" ;;
        esac
        case $argument in *=*) printf -v "FLAG_$name" '%s' "${argument#*=}" ;; *) printf -v "FLAG_$name" yes ;; esac
        ;;
    esac
  done
}

flags_of() {
  local flag
  for flag in $1; do printf ' --%s' "$flag"; done
}

usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; }

# The config file is read, not run: a value is text, whatever stands in it.
read_config() {
  local key line value number=0 seen=' '
  [ -r "$CONFIG" ] || fail 2 "there is no config file" "$CONFIG" "cp $HERE/pod.conf pod.conf, fill it in, --config=pod.conf"
  for key in "${KEYS[@]}"; do printf -v "$key" ''; done
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    case $line in '' | '#'*) continue ;; *=*) ;; *) fail 2 "not KEY=VALUE: $line" "$CONFIG:$number" "KEY=VALUE" ;; esac
    key=${line%%=*} value=${line#*=}
    case " ${KEYS[*]} " in
      *" $key "*) ;;
      *) fail 2 "unknown setting $key" "$CONFIG:$number" "known ones: ${KEYS[*]}" ;;
    esac
    case $value in \"*\") value=${value#\"} value=${value%\"} ;; \'*\') value=${value#\'} value=${value%\'} ;; esac
    if [ "$key" = BINDING ]; then
      BINDINGS+=("$value")
      continue
    fi
    case $seen in *" $key "*) fail 2 "$key stands there twice" "$CONFIG:$number" "remove one of the lines" ;; esac
    seen="$seen$key "
    printf -v "$key" '%s' "$value"
  done <"$CONFIG"
  for key in "${NEEDED[@]}"; do
    [ -n "${!key}" ] || fail 2 "$key is missing" "$CONFIG" "add a line $key=…; $HERE/pod.conf explains each"
  done
}

# check KEY PATTERN EXAMPLE: the value, if there is one, must look like it (an extended regular expression).
check() {
  local value=${!1}
  [ -z "$value" ] || [[ $value =~ ^($2)$ ]] || fail 2 "$1=$value is not valid" "$CONFIG" "for example $1=$3"
}

load() {
  [ "$DRY_RUN" = no ] || say "dry run: nothing is called; after a # stands what would be said where all goes well"
  read_config
  : "${SLICES:=1}" "${CURRENCY:=USD}" "${HOURS:=24}" "${INTERNAL_IPS:=no}" "${PYTHON:=3.11}" "${REVISION:=main}"
  : "${POLL_SECONDS:=60}" "${START_SECONDS:=20}" "${MAX_TRIES:=20}"
  HOURS=${FLAG_hours:-$HOURS}
  check PROJECT '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' my-project
  check ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' europe-west4-b
  check NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' elaine-1
  check SLICES '[1-9][0-9]{0,2}' 1
  check CAPACITY 'spot|on-demand|reserved' spot
  check VALID_UNTIL '[1-9][0-9]*[smhd]' 6h
  check INTERNAL_IPS 'yes|no' no
  check PRICE_PER_CHIP_HOUR '[0-9]+(\.[0-9]+)?' 1.2
  check HOURS '[0-9]+(\.[0-9]+)?' 24
  check PYTHON '3\.1[1-3]' 3.11
  check BUCKET 'gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' gs://my-bucket
  check RUN_DIR 'gs://[^ ]+' gs://my-bucket/runs/elaine-1
  check POLL_SECONDS '[0-9]+' 60
  check START_SECONDS '[0-9]+' 20
  check MAX_TRIES '[0-9]+' 20
  RUN_DIR=${RUN_DIR:-$BUCKET/runs/$NAME} RUN_DIR=${RUN_DIR%/}
  read_accelerator
  WHERE=("--zone=$ZONE" "--project=$PROJECT")
  DELETE=(gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet)
  [ "$DRY_RUN" = yes ] || command -v gcloud >/dev/null ||
    fail 2 "gcloud is not on the PATH" "$0" "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
}

# Chips and hosts of a slice, and the software that Google names for the chip.
read_accelerator() {
  local kind=${ACCELERATOR%-*} size=${ACCELERATOR##*-} sizes software=tpu-ubuntu2204-base cores=2
  case $kind in
    v2) sizes="8 32 128 256 512" ;;
    v3) sizes="8 32 64 128 256 512 1024 2048" ;;
    v4) sizes="8 16 32 64 128 256 384 512 640 768 896 1024 1536 2048 3072 4096" ;;
    v5p) sizes="8 16 32 64 128 256 384 512 640 768 896 1024 1536 2048 3072 4096 6144 8192 12288" software=v2-alpha-tpuv5 ;;
    v5litepod) sizes="1 4 8 16 32 64 128 256" software=v2-alpha-tpuv5-lite cores=1 ;;
    v6e) sizes="1 4 8 16 32 64 128 256" software=v2-alpha-tpuv6e cores=1 ;;
    v5e) fail 2 "unknown accelerator $ACCELERATOR" "$CONFIG" "ACCELERATOR=v5litepod-$size (Google's name of v5e)" ;;
    *) fail 2 "unknown accelerator $ACCELERATOR" "$CONFIG" "one of v2-8 v3-8 v4-32 v5litepod-256 v5p-128 v6e-256 …" ;;
  esac
  case " $sizes " in
    *" $size "*) ;;
    *) fail 2 "$kind has no slice of $size" "$CONFIG" "ACCELERATOR=$kind-N with N one of $sizes" ;;
  esac
  if [ "$SLICES" -gt 1 ]; then
    case $kind in v2 | v3) fail 2 "$kind knows no slices" "$CONFIG" "SLICES=1, or v4 and newer" ;; esac
  fi
  CHIPS=$((size / cores)) HOSTS=$((CHIPS / 4))
  # v5e and v6e put up to 8 chips on one host, and 4 on each host of larger slices.
  if [ "$HOSTS" -lt 1 ] || { [ "$cores" -eq 1 ] && [ "$CHIPS" -eq 8 ]; }; then HOSTS=1; fi
  RUNTIME=${RUNTIME:-$software}
}

# --- cost -----------------------------------------------------------------------------------------------------------

hourly() { awk -v c="$CHIPS" -v s="$SLICES" -v p="$PRICE_PER_CHIP_HOUR" 'BEGIN { printf "%.2f", c * s * p }'; }

show_cost() {
  local total=$((CHIPS * SLICES)) price="$PRICE_PER_CHIP_HOUR $CURRENCY"
  say "$NAME: $SLICES x $ACCELERATOR (each $CHIPS chips on $HOSTS hosts), $CAPACITY, in $ZONE of $PROJECT"
  say "cost: $total chips x $price a chip hour = $(hourly) $CURRENCY an hour," \
    "$(awk -v h="$(hourly)" -v n="$HOURS" 'BEGIN { printf "%.2f", h * n }') $CURRENCY for $HOURS hours"
  if [[ $PRICE_PER_CHIP_HOUR =~ ^0+(\.0+)?$ ]]; then
    say "PRICE_PER_CHIP_HOUR is 0: true only under a grant, in the zones that it names (storage and traffic are never free)"
  fi
}

# confirm QUESTION: goes on with --yes or a typed yes.
confirm() {
  local answer=''
  if [ "$YES" = yes ] || [ "$DRY_RUN" = yes ]; then return; fi
  printf '%s Type yes: ' "$1"
  read -r answer || true
  [ "$answer" = yes ] || fail 2 "not confirmed, nothing was done" "$0" "type yes, or pass --yes"
}
