"""Training of KECAE weights."""
