"""The network and one knee's way through it: intensities in, keys exchanged, the caller's format out."""
