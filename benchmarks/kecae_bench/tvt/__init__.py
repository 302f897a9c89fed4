"""Does T' beat T? The parts of benchmarks/t_vs_tprime.py and benchmarks/sampling_size.py.

knees.py     images in memory: what is read, with patients and file names
seen.py      which patients weights and judges were trained on
split.py     training, validation and test rows by patient; nested fractions; leaks are errors
draws.py     every random number is a function of (seed, step, what for), so that arms share their real knees
classical.py the classical augmentation
options.py   how X' is used
arms.py      the arms, and what each is for
batches.py   what a step of an arm looks like
metrics.py   what is said of a classifier
training.py  one classifier: equal steps, the best of equally many looks at validation patients
ground.py    data, split, weights and judges of a fold, checked before anything is trained
run.py       one run of a plan: from its settings to its line
store.py     one JSON line a run and its predictions; what is there is not run again
plan.py      which runs, in which order
loop.py      run after run: progress, remaining time, a dry run
flags.py     what both command lines share
"""
