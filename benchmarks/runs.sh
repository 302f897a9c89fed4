#!/usr/bin/env bash
# Every run of benchmarks/results/t_vs_tprime.jsonl, by its command (tests/test_runs.py compares them):
#
#     benchmarks/runs.sh DIR OUT              # DIR: the radiographs; OUT: oracles, and weights that are trained inside a fraction
#     benchmarks/runs.sh DIR OUT --dry-run    # what is there, and how long the rest would take
#
# Further flags go to every command of kecae_bench.tvt, for instance --results mine.jsonl. Stopped at any point, the
# same command goes on. One thread a process: two such processes side by side get more done on two cores than one of two.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
data=$1 out=$2
shift 2
flags=("$@")
export OMP_NUM_THREADS=1
# glibc: the half gigabyte of VGG-11's gradients stays mapped from step to step, about a fifth faster
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

PYTHONPATH=$(cd "$(dirname "$0")" && pwd)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
X="T'" pairs="T' from pairs" U="T' unlabelled hosts" V="T + X' unlabelled hosts, permuted labels"
hat="T + X^" same="T + X' same grade" permuted="T + X' permuted labels" real="T + further real"

study() { python -m kecae_bench.tvt --data "$data" "$@" ${flags[@]+"${flags[@]}"}; }
run() { study --weights knee-kl02 --test-unseen "$@"; }
small() { run --classifiers compact_vgg "$@"; }
short() { run --classifiers "$1" --steps 500 --batch-size 8 --validations 5 --strength 1.5 "${@:2}"; }

# --- 1,000 steps of 32: all labels, and fractions of them ---
small --seeds 0 1 2 --fractions 0.05 0.1 0.25 0.5 1 --arms T "$X"
small --seeds 3 4 --fractions 0.1 0.25 --arms T "$X"
small --seeds 0 1 2 --arms T "$X" "$hat" "$real"
small --seeds 0 --arms "$permuted"
small --seeds 0 1 2 3 4 --fractions 0.1 --arms "$hat" "$same" "$permuted"
small --seeds 0 1 2 --fractions 0.1 --arms "T + MixUp" "T + CutMix"
small --seeds 0 1 2 --fractions 0.1 --detail decoder --arms "$X"
for few in "1" "0.1"; do small --seeds 0 1 2 --fractions $few --strength 1.5 --arms "$pairs"; done
small --seeds 0 1 2 --strength 1.5 --early 0.5 --arms "$pairs"
for few in "1" "0.1"; do small --seeds 0 --fractions $few --strength 1.5 --arms "$X"; done
for strength in 1 1.5; do small --seeds 0 --fractions 0.1 --added 32 --strength $strength --arms "$X"; done
small --seeds 0 1 2 --strength 1.5 --p 1 --early 0.25 --arms "$X" # pre-training on X' alone
small --seeds 0 --steps 2000 --strength 1.5 --arms T "$pairs"
small --seeds 0 1 2 3 4 --fractions 0.1 --arms "$U"
for few in "1" "0.1"; do run --classifiers resnet18 --seeds 0 --fractions $few --arms T "$X"; done
run --classifiers compact_densenet --seeds 0 1 2 --fractions 0.1 --arms T "$X" "$permuted"
small --seeds 0 1 2 --strength 1.5 --n-pairs 500 5000 50000 --arms T "$pairs" # Fig. 5
study --weights knee-kl02 --precision bf16-mixed --classifiers tiulpin --seeds 0 1 2 --arms T "$X" "$hat"

# --- short trainings, 500 steps of 8 ---
short compact_vgg --seeds 0 1 2 --arms T "$X" "$hat" "$same" "$permuted" "$real"
short compact_vgg --seeds 0 1 2 --detail decoder --arms "$X"
short compact_vgg --seeds 0 1 2 --detail decoder --strength 1 --arms "$X"
short compact_vgg --seeds 0 1 2 --p 0.33 --arms "$X"
short resnet18 --seeds 0 1 2 3 4 --arms T "$X" "$hat"
short resnet18 --seeds 0 1 2 --arms "$real"
short resnet18 --seeds 0 --arms "$permuted"
short tiulpin --seeds 0 1 2 3 4 --arms T "$X" "$hat"
short tiulpin --precision bf16-mixed --seeds 0 1 2 --fractions 0.1 0.25 0.5 1 --arms T "$X"
short tiulpin --seeds 0 1 2 --arms "$real" "$permuted" "$same" "$pairs" "T + MixUp" "T + CutMix"
short tiulpin --seeds 0 1 2 --no-augmentation --arms T "$X" paper # "paper" has 1,801 steps, the next line's too
run --classifiers tiulpin --steps 1801 --batch-size 8 --validations 5 --no-augmentation --seeds 0 1 2 --arms T
short antony --seeds 0 1 2 3 4 --arms T "$X" "$hat"
short antony --seeds 0 --arms "$permuted"
short densenet201 --seeds 0 1 2 3 --arms T "$X"
short densenet201 --seeds 0 1 2 --arms "$hat"
for name in siamese_gap sspe_vit vgg11; do short $name --seeds 0 --arms T "$X"; done
short vgg11 --lr 1e-4 --seeds 0 --arms T "$X"
short vgg11 --lr 1e-4 --precision bf16-mixed --seeds 0 1 2 3 4 --arms T "$X"
short siamese_gap --precision bf16-mixed --seeds 0 1 2 3 4 --arms T "$X"

# --- in between: 1,000 and 2,000 steps of 8 ---
small --batch-size 8 --strength 1.5 --seeds 0 1 2 --arms T "$X"
small --batch-size 8 --strength 1.5 --steps 2000 --seeds 0 1 2 --arms T "$X"
small --batch-size 8 --strength 1.5 --seeds 0 1 --arms "$pairs"
small --batch-size 8 --seeds 0 --arms "$X"
small --batch-size 8 --seeds 0 1 --fractions 0.1 --arms T "$X"
run --classifiers resnet18 --batch-size 8 --seeds 0 --arms T

# --- T, too, is new to the weights: a user's case; two folds ---
new() { study --weights knee-kl02 --new-patients --folds 2 --classifiers compact_vgg "$@"; }
new --seeds 0 1 2 --fractions 0.2 --arms T "$X" "$U" "$V"
new --seeds 0 --arms T "$X"

# --- oracles that were trained on T give the labels of X', or are the gate ---
make() { if [[ " ${flags[*]-} " == *" --dry-run "* ]]; then echo "to do  $*"; else "$@"; fi; }
discriminator() { # table to train on, folder to write to, network, seed, then flags
    [ -f "$2/$3/discriminator.safetensors" ] || make kecae-aug discriminator --data "$1" --out "$2/$3" --network "$3" --seed "$4" --folds 1 \
        --grades '["0","2"]' "${@:5}"
}
oracles=$out/oracles
[ -f "$oracles/fixed.csv" ] || make study --test-unseen knee-kl02 --export "$oracles"
discriminator "$oracles/fixed.csv" "$oracles" vgg 11
discriminator "$oracles/fixed.csv" "$oracles" resnet 12
discriminator "$oracles/fixed.csv" "$oracles" densenet 13
if [ -d "$oracles/densenet" ]; then
    three=("$oracles/vgg" "$oracles/resnet" "$oracles/densenet")
    small --seeds 0 --oracles "${three[@]}" --labels oracles --arms "$X"
    small --seeds 0 --oracles "${three[@]}" --arms "T' gated"
    short tiulpin --seeds 0 1 2 --oracles "${three[@]}" --arms "T' gated"
fi

# --- weights that know no label beside those of the 10 % ---
[ -f "$out/inside/fixed-0.1-seed-0.csv" ] || make study --test-unseen knee-kl02 --fractions 0.1 --seeds 0 1 2 --export "$out/inside"
for seed in 0 1 2; do
    inside=$out/inside-10-seed-$seed part=$out/inside/fixed-0.1-seed-$seed.csv
    if [ ! -d "$inside/weights" ]; then
        few=(--epochs 100 --batch_size 32)
        discriminator "$part" "$out/inside/$seed" vgg 1 "${few[@]}"
        discriminator "$part" "$out/inside/$seed" resnet 0 "${few[@]}"
        discriminator "$part" "$out/inside/$seed" siamese 3 "${few[@]}"
        of=$out/inside/$seed
        make kecae-aug train --config default --data.root "$part" --data.folds 1 --out "$inside" \
            --discriminator "[\"$of/vgg\", \"$of/resnet\", \"$of/siamese\"]"
    fi
    [ ! -d "$inside/weights" ] || study --test-unseen knee-kl02 --weights "$inside/weights" --weights-data "$part" \
        --classifiers compact_vgg --fractions 0.1 --seeds $seed --arms T "$X" "$U"
done
