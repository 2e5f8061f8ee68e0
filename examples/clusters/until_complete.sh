#!/usr/bin/env bash
# until_complete.sh RUN STEPS COMMAND...: runs a training command again after a lost process, until RUN has a checkpoint
# of step STEPS.  Run it on every host.  If a signal stops this host or another one, training saves and ends with status
# 0; the script then ends with 75, for the cluster's manager to start all hosts again.
set -u
run=$1 steps=$2 stopped='' status=0
shift 2
trap 'stopped=1 interrupted=1; kill -TERM "$child" 2>/dev/null' TERM USR1 INT HUP
for _ in {0..50}; do
  interrupted=''
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while [[ $interrupted ]]; do # a signal ended the wait, or came after it: then there is no child any more
    interrupted=''
    wait "$child" 2>/dev/null
    again=$?
    [[ $again == 127 ]] || status=$again
  done
  if [[ $status == 0 ]]; then
    [[ -d $run/checkpoints/$steps ]] && exit 0
    exit 75
  fi
  [[ -z $stopped && ($status == 5 || $status == 134) ]] || exit "$status"
  sleep 30 &
  wait $!
  [[ -z $stopped ]] || exit 75
done
exit "$status"
