#!/bin/bash
# The runs of results/pascal-part, most important first: runs.sh DIR [celp run's other options]
#
# DIR holds VOC 2012 and SBD as `celp data pascal` leaves them, or a folder in VOC layout with the
# images of the list pascal-part. Each run goes on where it was stopped; two at a time, each with
# OMP_NUM_THREADS=1, are faster than one with two threads. Then, for each:
#   python results/collect.py results/pascal-part runs/NAME --queries
set -e
data=$1; shift
regime="--train-list pascal-part --backbone mobilenet_v2 --side 161 --crop 161 --reference 473
  --width 128 --lr 0.001 --iterations 2500 --pairs 1000 --cache-views 1 --resume"
variants() {  # the five systems of a decoder
  methods=("$1" "$1+CE" "$1+CE contrast=1" "$1+CE delta=0.25" "$1+CE contrast=1 delta=0.25")
}
for seed in 0 1 2; do
  for decoder in PFENet CyCTR; do
    variants $decoder
    celp run --name ${decoder,,}-s$seed --data "$data" $regime --seed $seed "$@" \
      --methods "${methods[@]}"
  done
done
