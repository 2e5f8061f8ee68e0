#!/usr/bin/env bash
# Cloud TPU: a spot slice of four hosts as a queued resource, requested again after each preemption until the run is
# complete.  Run it on a machine that stays up, with gcloud, in this repository:
#
#   ZONE=us-central1-a SHARE=10.0.0.2:/share bash examples/clusters/tpu_slice.sh
#
# SHARE is an NFS share such as Filestore: a preempted slice is deleted with its disks.
set -u
name=${NAME:-ddpm-jax} zone=${ZONE:?the zone of the slice} share=${SHARE:?HOST:/FOLDER of the shared folder}
run=/shared/runs/cifar10 steps=${STEPS:-800000}
setup="sudo apt-get install -y nfs-common && sudo mkdir -p /shared && sudo mount -t nfs $share /shared &&
  python3 -m venv ddpm && ddpm/bin/pip install './ddpm-jax[tpu]'"
train="PATH=\$HOME/ddpm/bin:\$PATH bash ddpm-jax/examples/clusters/until_complete.sh $run $steps \
  ddpm-jax train cifar10 --workdir $run --steps $steps --data.source npz:/shared/data/cifar10.npz"

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
state() { queued describe --format='value(state.state)'; }
copy() { gcloud compute tpus tpu-vm scp --recurse . "$name:ddpm-jax" --zone="$zone" --worker=all; }
everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
trap 'queued delete --force --quiet' EXIT

while true; do
  queued create --node-id="$name" --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot || exit
  until now=$(state) && [[ $now == ACTIVE ]]; do
    [[ $now != FAILED ]] || exit 1
    sleep 60
  done
  copy && everywhere "$setup" && everywhere "$train" && exit 0
  status=$?
  sleep 120 # until a preemption shows in the state
  [[ $(state) != ACTIVE ]] || exit "$status"
  queued delete --force --quiet
done
