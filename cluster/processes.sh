# Processes that have names, for the scripts of this folder:
#   source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"
# STATE is the folder of NAME.pid and NAME.log.

START_SECONDS=120

say() { printf '%s\n' "$*" >&2; }

refuse() {
  say "$@"
  exit 2
}

# A pid alone may be somebody else's after a reboot; a pid with its start time is not.
started_at() { # PID: the 22nd field of its stat file, counted behind the name, which may hold blanks
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -r -a stat <<<"${stat##*) }"
  echo "${stat[19]}"
}

remember() { # NAME PID
  echo "$2 $(started_at "$2")" >"$STATE/$1.pid"
}

pid_of() { cut -d ' ' -f 1 "$STATE/$1.pid"; } # NAME

is_alive() { # NAME
  local pid at
  [[ -e $STATE/$1.pid ]] || return 1
  read -r pid at <"$STATE/$1.pid" || return 1
  [[ -n $at && $(started_at "$pid") == "$at" ]]
}

give_up() { # NAME WHY: ends with the `stop` of the script that sources this file
  say "$1 $2; the end of its log:"
  tail -n 15 "$STATE/$1.log" >&2 || true
  stop
  exit 1
}

wait_for() { # NAME WHAT COMMAND...
  local name=$1 what=$2 deadline=$((SECONDS + START_SECONDS))
  shift 2
  until "$@" >/dev/null 2>&1; do
    is_alive "$name" || give_up "$name" "ended before $what"
    ((SECONDS < deadline)) || give_up "$name" "has been waited for $START_SECONDS s until $what"
    sleep 0.5
  done
}
