#!/usr/bin/env bash
# Rebuild the bundled weights, end to end, from a folder of radiographs (or none, for phantoms):
#
#     training/make_weights.sh phantom OUT            # phantom: KL 0 and 2, drawn
#     training/make_weights.sh kl02 DATA OUT          # knee-kl02: DATA/train/{0,2,3,4}, DATA/val/{0,2}
#     training/make_weights.sh kl04 DATA OUT          # knee-kl04: DATA/{train,val}/{0,1,2,3,4}
#
# The training patients are halved by a hash of their id: weights and discriminators of half 0, oracles of half 1, so that no
# oracle has seen a patient of the weights. `kl02` also trains half 1 and evaluates it with oracles of half 0 (cross-fit of the
# recipe); half 0 is what is bundled. Weights with their model card end in OUT/kecae-0/weights, figures in
# OUT/figures.jsonl, the page with pictures in OUT/figures.html. Stopped at any point, the same command goes on.
# To bundle them: cp OUT/kecae-0/weights/* src/kecae_aug/bundled/NAME/. Times: docs/training.md.
set -euo pipefail

# glibc gives large blocks back to the kernel and faults them in again at every step; keeping them
# makes a step a quarter faster on the CPU.
export THP_MEM_ALLOC_ENABLE=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000

discriminator() { # name, half, network, seed, then flags
    [ -f "$out/$1/discriminator.safetensors" ] ||
        kecae-aug discriminator --data "$data" --out "$out/$1" --fold "$2" --network "$3" --seed "$4" "${@:5}"
}
half() { # 0 or 1, then flags: discriminators and oracles of a half, and its weights
    for net in $networks; do discriminator "$net-$1" "$1" "$net" "${seed[$net]}" "${classifier[@]}"; done
    [ -f "$out/kecae-$1/weights/model.safetensors" ] ||
        kecae-aug train --config default --data.root "$data" --data.folds 2 --data.fold "$1" --out "$out/kecae-$1" \
            --discriminator "$(json "vgg-$1" "resnet-$1" "siamese-$1")" "${@:2}"
}
json() { # names of folders -> a JSON list of paths
    printf '['; for name in "$@"; do printf '%s"%s/%s"' "$comma" "$out" "$name"; comma=', '; done; printf ']'; comma=
}

declare -A seed=([resnet]=0 [vgg]=1 [densenet]=2 [siamese]=3)
networks="vgg resnet densenet siamese" comma=
bf16=(--run.precision bf16-mixed) # for CPUs with AVX-512 BF16; leave it out where there is none
# the small networks from scratch that the bundled weights were made and evaluated with, not the command's defaults
scratch=(--lr 2e-3 --batch_size 64 --ema null --wide 0)
cite="P. Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data 2018, doi 10.17632/56rmx5bjcr (CC BY 4.0), \
made from the Osteoarthritis Initiative"
case ${1:-} in
phantom)
    out=$2 data=$2/phantoms name=phantom license=mit source="drawn by kecae_aug.phantom, seed 1"
    about="Exchanges KL-0 and KL-2 keys of phantom knees: for the demo and for tests, not for radiographs."
    classifier=("${scratch[@]}" --image_size 64 --grades '["0","2"]' --epochs 10)
    [ -d "$data" ] || kecae-aug phantoms --out "$data" --train-patients 3000 --val-patients 200 --image-size 64 --seed 1
    # A vector key that learns with the pairs, a discriminator that comes late and reads an unblurred view: the best of five recipes by the
    # oracles, though it moves a quarter of the joint space that it should (docs/training.md, "Loss terms").
    half 0 --model.preset tiny --model.latent vector --model.latent_channels 128 --model.width 16 --model.key_size null \
        --optim.key_warmup 0 --optim.freeze_key false --optim.max_steps 4000 --optim.batch_size 24 --optim.lr 1e-3 \
        --optim.augment 0 --optim.ema 0.998 --loss.discriminator_from 2500 --loss.terms.sup 0.02 --loss.terms.sup_host 0.01 \
        --loss.terms.same_grade 1 --loss.terms.grade_free_non_key 0.02 --loss.discriminator_shift 1 --loss.discriminator_noise 0 --loss.discriminator_blur 0 "${bf16[@]}"
    for net in vgg densenet siamese; do discriminator "$net-1" 1 $net "${seed[$net]}" "${classifier[@]}"; done
    ;;
kl02)
    data=$2 out=$3 name=knee-kl02 license=cc-by-4.0 source=$cite
    about="Exchanges Kellgren-Lawrence grades 0 and 2 of knee radiographs cropped to the joint."
    classifier=("${scratch[@]}" --image_size 128 --grades '["0","2","3","4"]' --epochs 18)
    half 0 "${bf16[@]}"
    half 1 "${bf16[@]}"
    [ -f "$out/crossfit.jsonl" ] || kecae-aug evaluate --data "$data" --train_split train --realism true \
        --weights "$out/kecae-0/weights" "$out/kecae-1/weights" --discriminator "$out/resnet-0" "$out/resnet-1" \
        --oracles "[$(json vgg-1 densenet-1 siamese-1), $(json vgg-0 densenet-0 siamese-0)]" --out "$out/crossfit.jsonl"
    ;;
kl04)
    data=$2 out=$3 name=knee-kl04 license=cc-by-4.0 source=$cite
    about="Exchanges any two Kellgren-Lawrence grades of knee radiographs cropped to the joint. Its reconstructions are softer than \
knee-kl02's, and exchanges of far grades (0 and 4, 3 and 0) leave a mottled joint or streaks at its margin."
    classifier=("${scratch[@]}" --image_size 128 --epochs 14 --grades '["0","1","2","3","4"]')
    networks="vgg resnet siamese"
    half 0 --model.classes '["0","1","2","3","4"]' "${bf16[@]}"
    for net in vgg densenet siamese; do discriminator "$net-1" 1 $net "${seed[$net]}" "${classifier[@]}"; done
    ;;
*)
    sed -n '2,14p' "$0" >&2
    exit 2
    ;;
esac
[ -f "$out/figures.jsonl" ] || kecae-aug evaluate --weights "$out/kecae-0/weights" --data "$data" --train_split train \
    --oracles "$out/vgg-1" "$out/densenet-1" "$out/siamese-1" --discriminator "$out/resnet-0" --realism true \
    --out "$out/figures.jsonl" --page "$out/figures.html"
cross=() && [ -f "$out/crossfit.jsonl" ] && cross=(--cross_fit "$out/crossfit.jsonl")
kecae-aug card --weights "$out/kecae-0/weights" --figures "$out/figures.jsonl" "${cross[@]}" --name "$name" \
    --about "$about" --license "$license" --source "$source"
