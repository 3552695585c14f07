#!/usr/bin/env bash
# A cluster of several machines on this one (Linux, root): a Ray head, WORKERS workers (default 2) and an MLflow server:
#   bash cluster/namespaces.sh start [WORKERS] [--s3] [--shared FOLDER] [--read-only PATH]...
#   bash cluster/namespaces.sh run ual submit -c CONFIG tracking.uri=http://10.77.0.250:5000 output=FOLDER/first
#   bash cluster/namespaces.sh status | stop
# Environment: RAY (default: the `ray` of this environment), UAL_CPUS_PER_NODE (of each worker; the head has none),
# UAL_OBJECT_STORE_BYTES (per node), UAL_NODES_STATE (folder of pids, logs, and the nodes' own /tmp in NODE/tmp).
set -euo pipefail

# Each node has an address, a loopback, a host name, processes, shared memory, a /tmp and a home of its own. The rest of the
# disk is this machine's, read-only, as if it were the image that all machines were started from.
# --shared: what all of them write to, under the same path. Without it they share nothing, and output has to be a bucket.
# --s3: an object store in memory (moto's server) at http://10.77.0.251:9000, with the bucket `runs`.
# --read-only: inputs below /tmp, such as models; elsewhere they can be read anyway.
# `run`: a command on this machine's disk and on the nodes' network, as on a user's machine.
# The network is not this machine's: it lives in a namespace of its own, and nothing leads out of it. No interface, address or
# route of this machine is changed, and all of it is gone with its processes.

RAY=${RAY:-ray}
STATE=${UAL_NODES_STATE:-/tmp/ual_ray_nodes}
NETWORK=10.77.0
HEAD_IP=$NETWORK.2
MLFLOW_IP=$NETWORK.250
STORE_IP=$NETWORK.251
JOB_SERVER=http://$HEAD_IP:8265
WORKER_CPUS=${UAL_CPUS_PER_NODE:-3} # one for an actor or a rank, two for Ray Data's own tasks
OBJECT_STORE_BYTES=${UAL_OBJECT_STORE_BYTES:-1000000000}
STOP_SECONDS=20

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/processes.sh"

usage() {
  refuse "usage: bash cluster/namespaces.sh start [WORKERS] [--s3] [--shared FOLDER] [--read-only PATH]..." \
    "| run COMMAND... | status | stop"
}

names() { # what runs, the network last: it is what the others are connected to
  local file
  for file in "$STATE"/head.pid "$STATE"/worker-*.pid "$STATE"/mlflow.pid "$STATE"/store.pid "$STATE"/network.pid; do
    [[ -e $file ]] && basename "$file" .pid
  done
  return 0
}

in_network() { nsenter --target "$(pid_of network)" --net "$@"; }

has_own_network() { [[ $(readlink "/proc/$1/ns/net") != "$(readlink /proc/self/ns/net)" ]]; } # PID

start_network() {
  setsid unshare --net sleep infinity </dev/null >"$STATE/network.log" 2>&1 &
  remember network $!
  wait_for network "it has a namespace" has_own_network $!
  in_network ip link add ual type bridge
  in_network ip address add "$NETWORK.1/24" dev ual
  in_network ip link set ual up
  in_network ip link set lo up
}

launch() { # NAME ADDRESS COMMAND...
  local name=$1 address=$2 disk=$STATE/$1 path pid
  shift 2
  mkdir -p "$disk/tmp/home"
  # As Debian does it: a machine's own name leads to its loopback, where no other machine can reach it.
  printf '127.0.0.1 localhost\n127.0.1.1 ual-%s\n' "$name" >"$disk/hosts"
  while read -r _ path; do
    if [[ $path == /tmp/* ]]; then mkdir -p "$disk$path"; fi
  done <"$STATE/mounts"
  # The processes end with the first one of their namespace, and that one ends with `unshare`.
  setsid unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    bash "$HERE/namespaces.sh" inside "$name" "$address" "$@" </dev/null >"$STATE/$name.log" 2>&1 &
  pid=$!
  remember "$name" "$pid"
  wait_for "$name" "it has a namespace" has_own_network "$pid"
  in_network ip link add "$name" type veth peer name eth0 netns "$pid"
  in_network ip link set "$name" master ual up
}

inside() { # NAME ADDRESS COMMAND...: the first process of a node
  local name=$1 address=$2 disk=$STATE/$1 path target mode
  shift 2
  echo "ual-$name" >/proc/sys/kernel/hostname
  findmnt --raw --noheadings --output TARGET | grep -Ev '^/(proc|sys|dev)(/|$)' | while read -r target; do
    mount -o remount,bind,ro "$(printf %b "$target")"
  done
  while read -r mode path; do
    target=$path
    if [[ $path == /tmp/* ]]; then target=$disk$path; fi
    mount --bind "$path" "$target"
    mount -o "remount,bind,$mode" "$target"
  done <"$STATE/mounts"
  mount --bind "$disk/hosts" /etc/hosts
  mount --rbind "$disk/tmp" /tmp
  mount -o remount,bind,rw /tmp
  mount -t tmpfs tmpfs /dev/shm
  until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done
  ip link set lo up
  ip address add "$address/24" dev eth0
  ip link set eth0 up
  ip route add default via "$NETWORK.1"
  cd /tmp
  export HOME=/tmp/home TMPDIR=/tmp
  "$@" # not by exec: the first process of a namespace has to collect orphans, which bash does
}

start() {
  local workers=2 store='' name mounts=() needed=(ip nsenter unshare findmnt "$RAY")
  while (($#)); do
    case $1 in
      --shared | --read-only)
        [[ ${2:-} == /* && -d $2 ]] || refuse "$1 takes the absolute path of a folder; got ${2:-nothing}"
        if [[ $1 == --shared ]]; then mounts+=("rw $2"); else mounts+=("ro $2"); fi
        shift 2
        ;;
      --s3)
        store=yes
        needed+=("$(dirname "$(command -v "$RAY")")/moto_server" curl)
        shift
        ;;
      *)
        [[ $1 =~ ^[1-9][0-9]?$ ]] || usage
        workers=$1
        shift
        ;;
    esac
  done
  ((EUID == 0)) || refuse "namespaces need root: sudo bash cluster/namespaces.sh start"
  for name in "${needed[@]}"; do
    command -v "$name" >/dev/null \
      || refuse "no such command: $name (ip is in iproute2, moto_server in moto[server], most in util-linux; RAY=/path/to/ray)"
  done
  for name in $(names); do
    ! is_alive "$name" || refuse "these nodes are running already ($name, $STATE); to end them: bash cluster/namespaces.sh stop"
  done
  mkdir -p -m 700 "$STATE"
  [[ -O $STATE ]] || refuse "$STATE belongs to somebody else; choose another folder: UAL_NODES_STATE=..."
  rm -rf "${STATE:?}"/*
  ((${#mounts[@]} == 0)) || printf '%s\n' "${mounts[@]}" >"$STATE/mounts"
  touch "$STATE/mounts"
  (umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$STATE/token")
  trap 'exit 130' INT TERM
  trap stop EXIT # whatever fails on the way, nothing stays
  set_variables
  start_network
  start_services "$workers" "$store"
  trap - INT TERM EXIT
  status
}

set_variables() { # of Ray, its jobs and MLflow, on every node
  PATH=$(dirname "$(command -v "$RAY")"):$PATH # a job's `python` is then the one that has Ray
  export UAL_NODES_STATE=$STATE RAY_AUTH_MODE=token RAY_AUTH_TOKEN
  RAY_AUTH_TOKEN=$(<"$STATE/token")
  export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
  unset RAY_ADDRESS
}

start_services() { # WORKERS STORE: whether there is one
  local number ray=("$RAY" start --block --object-store-memory="$OBJECT_STORE_BYTES" --disable-usage-stats --log-color=false)
  launch mlflow "$MLFLOW_IP" mlflow server --host "$MLFLOW_IP" --allowed-hosts "$MLFLOW_IP:5000" --workers 1 \
    --backend-store-uri sqlite:////tmp/mlflow.db --artifacts-destination /tmp/artifacts
  [[ -z $2 ]] || launch store "$STORE_IP" moto_server -H "$STORE_IP" -p 9000
  launch head "$HEAD_IP" "${ray[@]}" --head --node-ip-address="$HEAD_IP" --num-cpus=0 --dashboard-host="$HEAD_IP"
  wait_for head "it runs" grep -q "Ray runtime started" "$STATE/head.log"
  for ((number = 1; number <= $1; number++)); do
    launch "worker-$number" "$(worker_ip "$number")" \
      "${ray[@]}" --address="$HEAD_IP:6379" --node-ip-address="$(worker_ip "$number")" --num-cpus="$WORKER_CPUS"
  done
  for ((number = 1; number <= $1; number++)); do
    wait_for "worker-$number" "it runs" grep -q "Ray runtime started" "$STATE/worker-$number.log"
  done
  wait_for head "its job server answers" in_network "$RAY" job list --address "$JOB_SERVER"
  wait_for mlflow "it answers" in_network bash -c "exec 3<>/dev/tcp/$MLFLOW_IP/5000"
  [[ -z $2 ]] || wait_for store "it has a bucket" in_network curl --fail --silent --request PUT "http://$STORE_IP:9000/runs"
}

worker_ip() { echo "$NETWORK.$(($1 + 2))"; } # NUMBER

address_of() { # NAME
  case $1 in
    head) echo $HEAD_IP ;;
    mlflow) echo $MLFLOW_IP ;;
    store) echo $STORE_IP ;;
    network) echo $NETWORK.1 ;;
    worker-*) worker_ip "${1#worker-}" ;;
  esac
}

run() { # COMMAND...
  is_alive network || refuse "not running; bash cluster/namespaces.sh start"
  set_variables
  export RAY_API_SERVER_ADDRESS=$JOB_SERVER
  exec nsenter --target "$(pid_of network)" --net "$@"
}

status() {
  local name running=0
  for name in $(names); do
    if is_alive "$name"; then
      say "$name: $(address_of "$name"), pid $(pid_of "$name"), log $STATE/$name.log"
      running=$((running + 1))
    else
      say "$name: ended; see $STATE/$name.log"
    fi
  done
  ((running)) || { say "not running"; return 1; }
  say "job server $JOB_SERVER, MLflow http://$MLFLOW_IP:5000; reach them with: bash cluster/namespaces.sh run COMMAND..."
}

stop() {
  local name pid first deadline=$((SECONDS + STOP_SECONDS)) mine=()
  trap - INT TERM EXIT
  for name in $(names); do
    is_alive "$name" || continue
    pid=$(pid_of "$name")
    # The first process of a namespace, with which all others end; `unshare` ends when they are gone. The network is one process.
    first=$(ps -o pid= --ppid "$pid" || true)
    kill -KILL ${first:-"$pid"} 2>/dev/null || true
    mine+=("$name")
  done
  for name in "${mine[@]}"; do
    while is_alive "$name" && ((SECONDS < deadline)); do sleep 0.1; done
    ! is_alive "$name" || refuse "$name, pid $(pid_of "$name"), does not end"
  done
  rm -f "$STATE"/*.pid
  if ((${#mine[@]})); then say "stopped"; else say "nothing to stop"; fi
}

case ${1:-} in
  start) start "${@:2}" ;;
  run) (($# > 1)) || usage; run "${@:2}" ;;
  status | stop) (($# == 1)) || usage; "$1" ;;
  inside) inside "${@:2}" ;;
  *) usage ;;
esac
