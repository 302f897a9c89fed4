"""What `kecae-aug evaluate` measures, and how it is shown.

:mod:`~kecae_training.evaluate.evaluation` puts it together: oracles (``oracles``, ``robustness``), anatomy (``anatomy``,
``phantom_truth``), identity (``identity``), latents (``probes``), realism (``realism``, ``two_sample``, ``frd``).
``criteria`` says what is good enough; ``page``, ``tables`` and ``pictures`` show it.
"""
