"""How far an image may be from grey, and from its range, and still be a radiograph: one rule for files and for batches."""

CHANNEL_TOLERANCE = 8 / 255  # of the full range: JPEG's colour rounding in a grey image
COLOURED_FRACTION = (
    0.01  # largest fraction of an image's pixels whose channels may differ by more: a side marker
)
RANGE_TOLERANCE = 0.05  # of the full range: how far interpolation overshoots before it is another range
