#!/usr/bin/env bash
# A Ray cluster of several raylets on this machine (Linux), for trying out submission:
#   bash cluster/local.sh start [WORKERS]      a head and WORKERS more raylets (default 1)
#   RAY_AUTH_MODE=token ual submit -c CONFIG --address http://127.0.0.1:8265 output=/tmp/runs/first
#   bash cluster/local.sh status | stop
# Environment: RAY (default: the `ray` of this environment), UAL_RAY_PORT (6379), UAL_DASHBOARD_PORT (8265), UAL_CLIENT_PORT
# (10001), UAL_CPUS_PER_NODE, UAL_OBJECT_STORE_BYTES (per raylet), UAL_CLUSTER_STATE (folder of pids, logs and Ray's own files).
set -euo pipefail

RAY=${RAY:-ray}
HOST=127.0.0.1
PORT=${UAL_RAY_PORT:-6379}
DASHBOARD_PORT=${UAL_DASHBOARD_PORT:-8265}
CLIENT_PORT=${UAL_CLIENT_PORT:-10001}
# Not $XDG_RUNTIME_DIR: Ray's sockets need a short path and what it spills needs a disk.
STATE=${UAL_CLUSTER_STATE:-/tmp/ual_ray_cluster_$(id -u)}

# Every raylet gets a loopback address of its own, so that Ray tells the nodes apart, and the network can change under them.
# 127.0.0.1 itself cannot be one of them: `ray start` would put the machine's outward address in its place.
HEAD_IP=127.0.0.2
worker_ip() { echo "127.0.0.$(($1 + 2))"; }

# Logical CPUs only limit how many tasks Ray runs at a time. The defaults need two for the actors (engine.max_actors, or
# train.num_workers), and Ray Data needs two more for its own read, write and checkpoint tasks: with none to spare, those wait
# for the actors and the actors wait for them. A head of 3 and a worker of 1 make four.
HEAD_CPUS=${UAL_CPUS_PER_NODE:-3}
WORKER_CPUS=${UAL_CPUS_PER_NODE:-1}
# By default each raylet would take 30 % of the memory, as if it had the machine to itself.
OBJECT_STORE_BYTES=${UAL_OBJECT_STORE_BYTES:-1000000000}

# Whoever reaches a Ray cluster can run commands on it, and Ray's internal ports listen on every interface whatever address a
# node has. The token keeps strangers and other users of this machine out; clients send it when RAY_AUTH_MODE is token.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
# `stop` means now: no 30 s in which a raylet would let its actors move elsewhere.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S:-0}

STOP_SECONDS=20

source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"

usage() { refuse "usage: bash cluster/local.sh start [WORKERS] | status | stop"; }

names() { # the raylets in the state folder, head first
  local file
  for file in "$STATE"/head.pid "$STATE"/worker-*.pid; do
    [[ -e $file ]] && basename "$file" .pid
  done
  return 0
}

descendants() { # PID: it and everything below it
  local child
  echo "$1"
  for child in $(ps -o pid= --ppid "$1" || true); do descendants "$child"; done
}

is_busy() { (exec 3<>"/dev/tcp/$HOST/$1") 2>/dev/null; }

launch() { # NAME RAY_START_ARGUMENT...
  local name=$1
  shift
  # setsid: a session of its own, which Ctrl-C here does not reach and which `stop` can name exactly.
  # --dashboard-agent-listen-port=0: its fixed default can be had only once per machine.
  # --temp-dir and RAY_ADDRESS: other programs must not take this cluster for theirs, nor our processes another one for ours.
  RAY_ADDRESS=$HEAD_IP:$PORT setsid "$RAY" start --block --object-store-memory="$OBJECT_STORE_BYTES" --temp-dir="$STATE/ray" \
    --dashboard-agent-listen-port=0 --disable-usage-stats --log-color=false "$@" \
    </dev/null >"$STATE/$name.log" 2>&1 &
  remember "$name" $!
}

start() { # WORKERS
  local workers=$1 name number pair
  [[ $workers =~ ^[0-9]{1,2}$ ]] || usage
  command -v "$RAY" >/dev/null || refuse "no such command: $RAY; activate the environment, or set RAY=/path/to/ray"
  for name in $(names); do
    ! is_alive "$name" || refuse "this cluster is running already ($name, $STATE); to end it: bash cluster/local.sh stop"
  done
  for pair in UAL_RAY_PORT="$PORT" UAL_DASHBOARD_PORT="$DASHBOARD_PORT" UAL_CLIENT_PORT="$CLIENT_PORT"; do
    ! is_busy "${pair#*=}" || refuse "port ${pair#*=} is in use; choose another: ${pair%=*}=... bash cluster/local.sh start"
  done

  mkdir -p -m 700 "$STATE"
  [[ -O $STATE ]] || refuse "$STATE belongs to somebody else; choose another folder: UAL_CLUSTER_STATE=..."
  rm -rf "${STATE:?}"/*.pid "$STATE"/*.log "$STATE/ray"
  if [[ $RAY_AUTH_MODE == token ]]; then # a token that is there already stays
    (umask 077 && "$RAY" get-auth-token --generate >/dev/null 2>&1) || refuse "$RAY get-auth-token --generate failed"
  fi
  PATH=$(dirname "$(command -v "$RAY")"):$PATH # a job's `python` is then the one that has Ray
  trap 'say interrupted; stop; exit 130' INT TERM

  launch head --head --node-ip-address="$HEAD_IP" --port="$PORT" --ray-client-server-port="$CLIENT_PORT" \
    --num-cpus="$HEAD_CPUS" --include-dashboard=true --dashboard-host="$HOST" --dashboard-port="$DASHBOARD_PORT"
  wait_for head "it runs" grep -q "Ray runtime started" "$STATE/head.log"
  # One after the other: raylets that start at the same moment in the same folder take the same socket name.
  for ((number = 1; number <= workers; number++)); do
    name=worker-$number
    launch "$name" --address="$HEAD_IP:$PORT" --node-ip-address="$(worker_ip "$number")" --num-cpus="$WORKER_CPUS"
    wait_for "$name" "it runs" grep -q "Ray runtime started" "$STATE/$name.log"
  done
  wait_for head "its job server answers" "$RAY" job list --address "http://$HOST:$DASHBOARD_PORT"
  status
}

status() {
  local name running=0
  for name in $(names); do
    if is_alive "$name"; then
      say "$name: running, pid $(pid_of "$name"), log $STATE/$name.log"
      running=$((running + 1))
    else
      say "$name: ended; see $STATE/$name.log"
    fi
  done
  ((running)) || { say "not running"; return 1; }
  say "job server http://$HOST:$DASHBOARD_PORT, Ray address $HEAD_IP:$PORT; clients need: export RAY_AUTH_MODE=$RAY_AUTH_MODE"
}

stop() {
  local name pid deadline mine=()
  trap - INT TERM
  for name in $(names | tac); do
    is_alive "$name" || continue
    read -r pid _ <"$STATE/$name.pid"
    # Listed before the first signal: a job's own process leaves our session and, once its parent is gone, our tree too.
    mapfile -t -O "${#mine[@]}" mine < <(descendants "$pid")
    kill -TERM "$pid" 2>/dev/null || true # `ray start --block` then ends what it started, in the right order
    deadline=$((SECONDS + STOP_SECONDS))
    while is_alive "$name" && ((SECONDS < deadline)); do sleep 0.2; done
    kill -KILL -- "-$pid" 2>/dev/null || true # what is left of its process group
  done
  rm -f "$STATE"/*.pid
  ((${#mine[@]})) || { say "nothing to stop"; return 0; }
  for pid in "${mine[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  say "stopped"
}

case ${1:-} in
  start)
    (($# <= 2)) || usage
    start "${2:-1}"
    ;;
  status | stop)
    (($# == 1)) || usage
    "$1"
    ;;
  *) usage ;;
esac
