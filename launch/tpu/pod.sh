#!/usr/bin/env bash
# A training run or an evaluation on the TPU VMs of one slice: create | setup | run | evaluate | watch | delete.
#
#   export NAME=janus ZONE=us-east5-a ACCELERATOR=v5p-128 BUCKET=gs://my-bucket
#   launch/tpu/pod.sh create                     # requests the slice and waits until it is ready
#   launch/tpu/pod.sh setup                      # copies the last commit to every host and installs it
#   launch/tpu/pod.sh run --config=configs/janus_pro_7b.py:stage2 --config.data.tokenizer=... ...
#   launch/tpu/pod.sh evaluate --checkpoint=$BUCKET/janus-pro-7b --data=$BUCKET/benchmarks --mesh=1,1,4
#   launch/tpu/pod.sh watch                      # follows the log of the first host, then shows the end of all logs
#   launch/tpu/pod.sh delete
#
# SPOT=1 asks for capacity that may be taken away. `run` writes to $BUCKET/runs/$NAME and goes on from its last
# checkpoint; `evaluate` writes to $BUCKET/evaluations/$NAME and goes on with the batches that are missing. So after a
# slice is lost: create, setup and the same command again. Both wait half a minute, to report a mistake that ends them
# at once. Ctrl-C ends only the watching. docs/pods.md and docs/evaluation.md explain each step.
set -euo pipefail

usage() {
  sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

need() {
  for variable in "$@"; do
    if [[ -z "${!variable:-}" ]]; then
      echo "error: $variable is not set; see the head of $0" >&2
      exit 2
    fi
  done
}

# Prints the runtime image that Google provides for the generation of the accelerator.
runtime() {
  case "$ACCELERATOR" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *)
      echo "error: ACCELERATOR=$ACCELERATOR, expected v4-*, v5litepod-*, v5p-* or v6e-*" >&2
      exit 2
      ;;
  esac
}

tpus() { gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}; }

on_hosts() { # HOSTS COMMAND
  tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

# Prints the end of a host's log. The reason for an end stands in the log of the host that failed, not always the first.
LAST_LINES="tail -n 20 train.log 2>&1 | sed \"s/^/\$(hostname): /\""

create() {
  need NAME ZONE ACCELERATOR
  local image state
  image=$(runtime)
  tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$image" ${SPOT:+--spot}
  while true; do
    state=$(tpus queued-resources describe "$NAME" --format="value(state.state)")
    echo "$(date +%T) $NAME: $state"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "error: the request ended as $state; gcloud shows why; then: $0 delete" >&2
        exit 1
        ;;
    esac
    sleep "${POLL_SECONDS:-30}"
  done
}

setup() {
  need NAME ZONE
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  tpus tpu-vm scp "$archive" "$NAME:janus_jax.tar.gz" --worker=all
  rm "$archive"
  on_hosts all "set -e; mkdir -p janus_jax; tar -xzf janus_jax.tar.gz -C janus_jax; cd janus_jax; python3.11 -m venv .venv \
|| (sudo apt-get update && sudo apt-get install -y python3.11-venv && python3.11 -m venv .venv); \
.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[tpu,eval]'"
}

run() {
  need NAME ZONE BUCKET
  local command
  command=$(printf '%q ' .venv/bin/python -m launch.train --multihost "--workdir=$BUCKET/runs/$NAME" "$@")
  start_on_all_hosts "$command"
}

evaluate() {
  need NAME ZONE BUCKET
  local command
  command=$(printf '%q ' .venv/bin/python -m launch.evaluate "--output=$BUCKET/evaluations/$NAME" "$@")
  # Each host asks for its own number and for the addresses of all hosts, of which there is one between two commas.
  start_on_all_hosts "$command --process_id=\$($METADATA/agent-worker-number) \
--num_processes=\$($METADATA/worker-network-endpoints | tr ',' '\\n' | grep -c .)"
}

METADATA="curl -sf -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes"

start_on_all_hosts() { # COMMAND
  # With setsid the run outlives this connection. The lock is held until the run and its worker processes have ended.
  on_hosts all "cd janus_jax; if flock --nonblock train.lock true; then \
setsid nohup flock --nonblock train.lock $1 </dev/null >>train.log 2>&1 & sleep 1; \
if flock --timeout ${START_SECONDS:-30} train.lock true; then echo \"\$(hostname): the run has ended:\"; \
$LAST_LINES; wait \$!; fi; else echo 'already running'; fi"
}

watch() {
  need NAME ZONE
  # `flock` ends when the run has ended, and `tail` ends with `flock`.
  on_hosts 0 "cd janus_jax; flock --shared train.lock true & tail -n 100 -F --pid=\$! train.log"
  on_hosts all "cd janus_jax; $LAST_LINES"
}

delete() {
  need NAME ZONE
  tpus queued-resources delete "$NAME" --force --quiet
}

action=${1:-}
[[ -n "$action" ]] && shift
case "$action" in
  create | setup | run | evaluate | watch | delete) "$action" "$@" ;;
  *) usage ;;
esac
