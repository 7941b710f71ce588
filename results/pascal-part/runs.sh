#!/bin/bash
# The runs of results/pascal-part, most important first: runs.sh DIR [celp run's other options]
#
# DIR holds VOC 2012 and SBD as `celp data pascal` leaves them, or a folder in VOC layout with the
# images of the list pascal-part. Each run goes on where it was stopped, and works on as many folds at
# a time as there are cores. The prior is scored once, with seed 0 of PFENet. Then, for each:
#   python results/collect.py results/pascal-part runs/NAME --queries
set -e
data=$1; shift
regime="--train-list pascal-part --backbone mobilenet_v2 --side 241 --crop 241 --reference 473
  --width 128 --lr 0.001 --iterations 2000 --pairs 1000 --cache-views 1 --resume"
variants() {  # the five systems of a decoder
  methods=("$1" "$1+CE" "$1+CE contrast=1" "$1+CE delta=0.25" "$1+CE contrast=1 delta=0.25")
}
for seed in 0 1 2; do
  for decoder in PFENet CyCTR; do
    variants $decoder
    prior=--no-trivial
    if [ $decoder$seed = PFENet0 ]; then prior=; fi
    celp run --name ${decoder,,}-s$seed --data "$data" $regime --seed $seed $prior "$@" \
      --methods "${methods[@]}"
  done
done
# Tables 5, 6 and 7, seed 0
celp run --name pfenet-s0-tables --data "$data" $regime --seed 0 --no-trivial "$@" --methods \
  "PFENet+CE delta=0.4" "PFENet+CE delta=0.5" "PFENet+CE delta=0.8" "PFENet+CE contrast=0.25"
celp run --name table7-s0 --data "$data" $regime --seed 0 --no-trivial "$@" --methods PFENet+CE \
  --voting --shots 5
# what paper and code differ in, and one δ per image (48_paper_and_code, 49_beyond), seed 0
celp run --name differences-s0 --data "$data" $regime --seed 0 --no-trivial "$@" --methods \
  "PFENet+CE rate=0.1" "PFENet+CE known=class" "PFENet+CE latent_prior=masked" \
  "PFENet+CE contrast=1 auxiliary=0.1" "PFENet+CE separate=yes" "PFENet+CE share=0.1"
# other regimes, seed 0 (5 classes also 1); their scores go to results/pascal-part/other_regimes
celp run --name pfenet-s0-twice --data "$data" $regime --iterations 4000 --seed 0 --no-trivial \
  "$@" --fold 1 --methods PFENet PFENet+CE "PFENet+CE contrast=1 delta=0.25"
celp run --name photographs400-s0 --data "$data" $regime --seed 0 --no-trivial "$@" \
  --photographs 400 --methods PFENet PFENet+CE
for seed in 0 1; do
  celp run --name classes5-s$seed --data "$data" $regime --seed $seed --no-trivial "$@" \
    --classes 5 --methods PFENet PFENet+CE "PFENet+CE contrast=1 delta=0.25"
done
# the paper's backbone: 161 pixels, whose kept features take 18 GB for two folds
celp run --name resnet50-s0 --data "$data" $regime --backbone resnet50 --side 161 --crop 161 \
  --iterations 3500 --seed 0 "$@" --methods PFENet PFENet+CE "PFENet+CE contrast=1 delta=0.25"
# what the answers owe to the support: reads the models of runs above
# python results/swap.py results/pascal-part runs/pfenet-s0 runs/cyctr-s1 runs/differences-s0
# python results/swap.py results/pascal-part/other_regimes runs/classes5-s0
# whether a system segments better or only marks more
# python results/cuts.py results/pascal-part runs/pfenet-s0 runs/differences-s0
# python results/cuts.py results/pascal-part/other_regimes runs/classes5-s0 runs/classes5-s1 \
#   runs/resnet50-s0
# what our rules make of a test
# python results/rules.py results/pascal-part runs/pfenet-s0
