"""`kecae-aug search`: hyper-parameters of a KECAE, by short trainings."""
