"""What `kecae-aug evaluate` measures, and how it is shown.

:mod:`~kecae_training.evaluate.evaluation` runs all measurements: ``oracles``, ``anatomy``, ``identity``, ``probes`` and
``realism``, of the images in ``exchanges``, for the weights and oracles in ``entrants``. ``criteria`` are the acceptance
criteria; ``tables``, ``chart``, ``page`` and ``card`` show the figures.
"""
