#!/usr/bin/env bash
# Rebuild the bundled weights, end to end:
#
#     training/make_weights.sh phantom OUT          # about 10 minutes on two cores
#     training/make_weights.sh knee DATA OUT        # about 70 minutes; DATA/train/{0,2,3,4}, DATA/val/{0,2}
#
# Weights with their model card end in OUT/run/weights, figures in OUT/figures.jsonl. Stopped at any point, the
# same command goes on. To bundle them: cp OUT/run/weights/* src/kecae_aug/bundled/NAME/
set -euo pipefail

# glibc gives large blocks back to the kernel and faults them in again at every step; keeping them
# makes a step a quarter faster on the CPU.
export THP_MEM_ALLOC_ENABLE=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000

guide() { # data, out, then flags
    [ -f "$2/guide.safetensors" ] || kecae-aug guide --data "$1" --out "$2" "${@:3}"
}

cite="P. Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data 2018, doi 10.17632/56rmx5bjcr (CC BY 4.0), \
made from the Osteoarthritis Initiative"
case ${1:-} in
phantom)
    out=$2 name=phantom license=mit source="drawn by kecae_aug.data.phantom, seed 1"
    about="Exchanges KL-0 and KL-2 keys of phantom knees: for the demo and for tests, not for radiographs."
    data=$2/phantoms small=(--image_size 64 --grades '["0","2"]' --epochs 10)
    [ -d "$data" ] || kecae-aug phantoms --out "$data" --train-patients 1500 --val-patients 200 --image-size 64 --seed 1
    guide "$data" "$out/guide" --network resnet --fold 0 "${small[@]}"
    guide "$data" "$out/judge-vgg" --network vgg --fold 1 --seed 1 "${small[@]}"
    guide "$data" "$out/judge-densenet" --network densenet --fold 1 --seed 2 "${small[@]}"
    kecae-aug train --config default --model.preset tiny --optim.max_steps 2500 --data.root "$data" \
        --guide "$out/guide" --out "$out/run"
    ;;
knee)
    data=$2 out=$3 name=knee-kl02 license=cc-by-4.0 source=$cite
    about="Exchanges Kellgren-Lawrence grades 0 and 2 of knee radiographs cropped to the joint."
    guide "$data" "$out/guide" --network resnet --fold 0 --epochs 16
    guide "$data" "$out/judge-vgg" --network vgg --fold 1 --seed 1 --epochs 16
    guide "$data" "$out/judge-densenet" --network densenet --fold 1 --seed 2 --epochs 16
    kecae-aug train --config default --data.root "$data" --guide "$out/guide" --out "$out/run"
    ;;
*)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
[ -f "$out/figures.jsonl" ] || kecae-aug evaluate --weights "$out/run/weights" --data "$data" --split val \
    --judges "[\"$out/judge-vgg\", \"$out/judge-densenet\"]" --guide "$out/guide" --strengths '[1.0, 1.5]' --robustness true \
    --out "$out/figures.jsonl"
kecae-aug card --weights "$out/run/weights" --figures "$out/figures.jsonl" --name "$name" --about "$about" \
    --license "$license" --source "$source"
