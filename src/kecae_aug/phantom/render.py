"""Draw a phantom knee: bones as distance fields, tissue as layers, then the exposure.

Everything is computed in the knee's own frame (origin on the joint line, x to lateral, y down, 1 = image
height) from one-dimensional contours, so a size is only a sampling: 64 px and 320 px show the same knee.
All that the key moves lies within `JOINT_REGION` of the joint line; outside it, an exchanged
key changes no pixel.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from kecae_aug.phantom.shape import Array, Contours, contours, distance
from kecae_aug.phantom.truth import KneeKey, KneeNuisance, KneeTruth

_NEUTRAL = KneeKey(0, 0.05, 0.05)
JOINT_REGION = 0.25  # height above and below the joint line, in the knee's frame, that a key may change


def render(truth: KneeTruth, image_size: int = 128) -> Array:
    """The radiograph of a phantom knee.

    Args:
        truth: the knee; nothing else enters, so the same truth gives the same pixels.
        image_size: S, in pixels; 32 to 640.

    Returns:
        float32 (S, S) in [0, 1], bone bright (dark if `nuisance.inverted`); a left knee has its medial side
        at the left, a right knee is the mirror image.

    Raises:
        ValueError: for a size outside 32 to 640.
    """
    if not 32 <= image_size <= 640:
        raise ValueError(f"render: image_size must be 32 to 640 pixels, got {image_size}; resize afterwards")
    n = truth.nuisance
    x, y = _knee_frame(n, image_size)
    outlines = contours(truth.key, n)
    image = _expose(_tissue(truth.key, n, outlines, x, y, image_size), n, x, y)
    if n.noise > 0:
        rng = np.random.default_rng([n.texture_seed, image_size])
        image += np.float32(n.noise * image_size / 224) * rng.standard_normal(image.shape, dtype=np.float32)
    image = np.clip(image, 0.0, 1.0)
    if n.inverted:
        image = 1 - image
    return np.ascontiguousarray(image[:, ::-1] if n.side == "R" else image)


def joint_region(truth: KneeTruth, image_size: int = 128) -> npt.NDArray[np.bool_]:
    """(S, S) bool: the pixels that another key may change. All others are the same for every key."""
    _, y = _knee_frame(truth.nuisance, image_size)
    inside = np.abs(y) <= JOINT_REGION
    return inside[:, ::-1] if truth.nuisance.side == "R" else inside


def _knee_frame(n: KneeNuisance, size: int) -> tuple[Array, Array]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    dx, dy = axis[None, :] - n.shift_x, axis[:, None] - n.shift_y
    c, s = math.cos(math.radians(n.tilt)) / n.scale, math.sin(math.radians(n.tilt)) / n.scale
    x, y = c * dx + s * dy, c * dy - s * dx
    return x.astype(np.float32), y.astype(np.float32)


def _smooth_min(a: Array, b: Array, k: float) -> Array:
    h = np.maximum(k - np.abs(a - b), 0.0)
    return np.asarray(np.minimum(a, b) - h * h / (4 * k))


def _cover(d: Array, width: float | Array) -> Array:
    """0 outside, 1 inside, a cubic edge of full width `width` about d = 0."""
    u = np.clip(d / width + 0.5, 0.0, 1.0)
    return np.asarray(u * u * (3 - 2 * u), dtype=np.float32)


def _line(d: Array, width: float, pixel: float) -> Array:
    """A bright line about d = 0. One thinner than a pixel keeps its total light and loses its height."""
    wide = math.hypot(width, pixel)
    u = np.clip(1 - (d / wide) ** 2, 0.0, 1.0)
    return np.asarray((width / wide) * u * u, dtype=np.float32)


def _tissue(key: KneeKey, n: KneeNuisance, c: Contours, x: Array, y: Array, size: int) -> Array:
    """Attenuation of the knee, (S, S); about 0 in air, 0.35 in soft tissue, 0.75 in bone."""
    pixel = 1 / (size * n.scale)
    edge = math.hypot(1.5 * pixel, 2.0 * n.blur)
    fine, cloud = _texture(n.texture_seed, size)
    middle = np.exp(-((x / 0.12) ** 4))

    # the outlines of another key fade out before the joint region ends, so that it changes no pixel outside
    rest, near = contours(_NEUTRAL, n), _cover(0.225 - np.abs(y), 0.05)

    def blend(of_key: Array, neutral: Array) -> Array:
        return near * of_key + (1 - near) * neutral

    under_femur = blend(-distance(c.femur, x, y), -distance(rest.femur, x, y))
    above_tibia = blend(distance(c.tibia, x, y), distance(rest.tibia, x, y))
    femur_sides = _smooth_min(distance(c.femur_medial, y, x), -distance(c.femur_lateral, y, x), 0.05)
    tibia_sides = _smooth_min(distance(c.tibia_medial, y, x), -distance(c.tibia_lateral, y, x), 0.05)
    femur = _smooth_min(under_femur, femur_sides, 0.09)
    tibia = _smooth_min(above_tibia, tibia_sides, 0.035)
    in_femur, in_tibia = _cover(femur, edge + n.notch_blur * middle), _cover(tibia, edge + 0.012 * middle)

    limb = np.sqrt(np.clip(1 - ((x - n.soft_shift) / n.soft_width) ** 2, 0.0, 1.0))
    soft = 0.42 * limb + 0.006 * n.mottle * cloud
    bone = in_femur * (0.14 + 0.10 * _swell(femur, 0.16)) + in_tibia * (0.13 + 0.04 * _swell(tibia, 0.16))
    bone += (in_femur + in_tibia) * (0.013 * n.trabeculae * fine + 0.009 * n.mottle * cloud)

    thin = 0.004 + n.blur
    shell = (
        0.065
        * n.cortex
        * (in_femur * _line(femur - thin, thin, pixel) + in_tibia * _line(tibia - thin, thin, pixel))
    )
    shell *= 1 - 0.6 * middle
    return np.asarray(
        soft
        + n.bone * (bone + shell + _plates(key, n, x, femur, tibia, under_femur, above_tibia, pixel))
        + _overlays(n, x, y, in_femur, in_tibia, pixel, edge),
        dtype=np.float32,
    )


def _swell(d: Array, depth: float) -> Array:
    """How the projected thickness of a rounded bone grows from its edge inwards: 0 to 1 over `depth`."""
    u = np.clip(d / depth, 0.0, 1.0)
    return np.asarray(u * (2 - u))


def _plates(
    key: KneeKey,
    n: KneeNuisance,
    x: Array,
    femur: Array,
    tibia: Array,
    under_femur: Array,
    above_tibia: Array,
    pixel: float,
) -> Array:
    """Subchondral plates, and sclerosis, which thickens and whitens them."""
    total = np.zeros_like(x)
    for side, white in ((-1, key.medial_sclerosis), (1, key.lateral_sclerosis)):
        at = np.exp(-(((side * x - 0.20) / 0.10) ** 4)) + 0.3 * np.exp(-(((side * x - 0.33) / 0.06) ** 2))
        # begins at the surface, so that the bright plate does not shift the edge a reader measures to
        wide = 0.009 + 0.010 * white
        total += (
            at * (0.13 * n.plate + 0.12 * white) * _line(above_tibia - 0.7 * wide, wide, pixel) * (tibia > 0)
        )
        floor = (
            at
            * 0.05
            * n.plate
            * _line(above_tibia - 0.012 - n.rim * np.exp(-(((side * x - 0.21) / 0.1) ** 2)), 0.01, pixel)
        )
        total += floor * (tibia > 0)
        total += (
            at
            * (0.05 * n.plate + 0.10 * white)
            * _line(under_femur - 0.008, 0.008 + 0.008 * white, pixel)
            * (femur > 0)
        )
        if white > 0:
            total += 0.10 * white * at * np.clip(1 - above_tibia / 0.09, 0, 1) * _cover(tibia, 0.02)
    return total


def _overlays(
    n: KneeNuisance, x: Array, y: Array, in_femur: Array, in_tibia: Array, pixel: float, edge: float
) -> Array:
    """What lies over the bones in projection: patella, fibula, notch walls, growth-plate scars."""
    px, py = (x - n.patella_x) / 1.15, y - n.patella_y
    r = np.hypot(px, py) * (1 + 0.25 * np.abs(px) * py / (px * px + py * py + 1e-4)) - n.patella_size
    patella = n.patella * (0.07 * _cover(-r, 0.05 + edge) + 0.03 * _line(r + 0.008, 0.012, pixel))

    # head of the fibula: a capsule from the head down and outwards
    px, py = x - n.fibula_x, y - n.fibula_y
    t = np.clip((0.25 * px + 0.97 * py) / 0.5, 0.0, 1.0)
    f = 0.075 - 0.022 * t - np.hypot(px - 0.125 * t, py - 0.485 * t)
    fibula = _cover(f, edge + 0.015) * (0.04 + 0.03 * _swell(f, 0.06)) + 0.045 * n.cortex * _line(
        f - 0.006, 0.007, pixel
    )

    wall = np.zeros_like(x)
    for side in (-1, 1):
        bend = side * (n.notch_width + 0.02 - 0.25 * (y + 0.17) ** 2) + 0.01
        wall += 0.08 * _line(x - bend, 0.009, pixel) * _cover(y + 0.27, 0.1) * _cover(-0.08 - y, 0.05)
    scar = (
        _line(y - n.flare + 0.25 * x * x, 0.007, pixel)
        * (0.04 + 0.08 * np.abs(x))
        * _cover(np.abs(x) - 0.1, 0.12)
    )
    scar *= in_femur
    scar += (
        in_tibia
        * 0.06
        * _line(y - 0.16 - 0.02 * np.cos(14 * x), 0.006, pixel)
        * _cover(np.abs(x) - 0.12, 0.2)
    )
    return np.asarray(patella + fibula + wall * in_femur + n.scars * scar, dtype=np.float32)


def _expose(a: Array, n: KneeNuisance, x: Array, y: Array) -> Array:
    """Attenuation to grey level: window, uneven field, over-exposure, a soft shoulder to white."""
    g = 0.60 + n.brightness + n.contrast * (a - 0.55) + n.gradient_x * x + n.gradient_y * y
    g += n.glow * np.exp(-((x / 0.3) ** 2) - ((y + 0.3) / 0.28) ** 2)
    # linear to 0.8, then towards 1 without reaching it
    return np.asarray(
        np.where(g > 0.8, 1 - 0.2 * np.exp(-(np.maximum(g, 0.8) - 0.8) / 0.2), g), dtype=np.float32
    )


# texture


@functools.lru_cache(maxsize=4)
def _tiles(size: int) -> tuple[Array, Array]:
    """Two periodic textures two images wide: trabeculae (fine, mostly vertical) and clouds.

    Made once at 640 px and cut in frequency, so that each size shows the same pattern. Unit variance at 320 px.
    """
    base, tile = 640, 2 * size
    rng = np.random.default_rng(20230226)
    f = np.fft.fftfreq(base) * base / 2  # cycles an image
    fy, fx = f[:, None], f[None, :]
    r = np.hypot(fx, fy) + 1e-6
    streaks = np.exp(-((np.abs(fx) - 38) ** 2) / (2 * 16.0**2) - (fy / 14) ** 2)
    mesh = 0.5 * np.exp(-((np.log(r / 30)) ** 2) / (2 * 0.5**2))
    out = []
    for spectrum in (streaks + mesh, np.exp(-((np.log(r / 4)) ** 2) / (2 * 0.7**2))):
        white = np.fft.fft2(rng.standard_normal((base, base)))
        image = np.fft.fft2(np.fft.ifft2(white * spectrum).real)
        image /= np.sqrt((np.abs(image) ** 2).sum()) / base**2
        half = min(base, tile) // 2
        keep = np.zeros((tile, tile), dtype=np.complex128)
        at_tile, at_base = np.r_[0:half, tile - half : tile], np.r_[0:half, base - half : base]
        keep[np.ix_(at_tile, at_tile)] = image[np.ix_(at_base, at_base)]
        out.append((np.fft.ifft2(keep).real * (tile / base) ** 2).astype(np.float32))
    return out[0], out[1]


def _texture(seed: int, size: int) -> tuple[Array, Array]:
    """This knee's crop of both tiles, (S, S) each."""
    fine, cloud = _tiles(size)
    (a, b), (c, d) = (np.random.default_rng([seed, 2]).random((2, 2)) * size).astype(int)
    return fine[a : a + size, b : b + size], cloud[c : c + size, d : d + size]
