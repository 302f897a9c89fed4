"""T against T': does a classifier gain by exchanged knees?

__main__.py      the command line; flags.py what it shares with the key probe
plan.py          which runs, in which order
loop.py          run after run: progress, remaining time, a dry run
run.py           one run of a plan: from its settings to its line
training.py      one classifier: equal steps, the best of equally many validations
batches.py       what a step of an arm holds; added.py what the arm adds to it
arms.py          the arms, what each is for, and how X' is used
augmentation.py  standard augmentation
draws.py         every random number is a function of (seed, step, what for), so that arms share their real knees
ground.py        data, split, weights and oracles of a fold, checked before anything is trained
split.py         training, validation and test knees by patient; nested fractions; leaks are errors
seen.py          which patients weights and oracles were trained on
knees.py         images in memory: what is read, with patients and file names
store.py         one JSON line a run, predictions of all runs in one file; what is there is not run again
"""
