"""The page of a reader study: what is on the screen is exact, legible and reachable by keyboard."""

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="playwright is not installed: pip install .[dev]")
import reader_browser
from reader_browser import Reader, url

pytest_plugins = ["reader_browser"]
pytestmark = reader_browser.needed


def greys(page):
    """Greys on the screen at the middle of each of the 256 columns of `ramp`, and the box of the image."""
    box = page.locator("#left .frame").bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).astype(int)
    return shot[round(top + side / 4), np.floor(left + (np.arange(256) + 0.5) * side / 256).astype(int)]


def test_window_and_level_are_exact_and_linear(context, folder):
    """A reader who sets a window sees the greys that the window says: within rounding and the resampling."""
    reader = Reader(context, url(folder[0]), "window")
    reader.begin()
    grey = np.arange(256)
    for steps, inverted in (((), False), (("Shift+ArrowLeft",) * 12, False), (("Shift+ArrowUp",) * 6, True)):
        reader.keys(*steps, *(["i"] if inverted else []))
        view = reader.page.evaluate("Reading.view.state")
        wanted = np.clip((grey - (view["level"] - view["window"] / 2)) / view["window"], 0, 1) * 255
        wanted = 255 - wanted if inverted else wanted
        assert np.abs(greys(reader.page) - wanted).max() <= 1 + 255 / view["window"], view
    assert view["window"] == 255 - 12 * 8
    assert view["level"] == 127.5 - 6 * 4
    reader.keys("z")
    assert np.abs(greys(reader.page) - grey).max() <= 2
    reader.close()


def test_zoom_keeps_the_point_under_the_pointer_and_pan_keeps_the_image_in_its_frame(context, folder):
    reader = Reader(context, url(folder[0]), "zoom")
    reader.begin()
    box = reader.page.locator("#left .frame").bounding_box()
    x, y = box["x"] + 0.7 * box["width"], box["y"] + 0.4 * box["height"]
    reader.page.mouse.move(x, y)
    seen = []
    for _ in range(3):
        reader.page.mouse.wheel(0, -100)
        reader.page.wait_for_timeout(50)
        view = reader.page.evaluate("Reading.view.state")
        seen.append(((0.2 - view["x"]) / view["zoom"], (-0.1 - view["y"]) / view["zoom"]))
    assert view["zoom"] > 1.5
    np.testing.assert_allclose(seen, [(0.2, -0.1)] * 3, atol=1e-3)
    reader.page.mouse.down()
    reader.page.mouse.move(x + 5000, y)
    reader.page.mouse.up()
    view = reader.page.evaluate("Reading.view.state")
    assert view["x"] == pytest.approx((view["zoom"] - 1) / 2)
    reader.close()


def test_both_images_of_a_pair_share_the_view_and_flicker_in_one_place(context, folder):
    reader = Reader(context, url(folder[0]), "pairs")
    reader.begin()
    reader.grade(1, 4)
    reader.open2()
    reader.keys("+", "+", "ArrowLeft", "Shift+ArrowLeft")
    styles = reader.page.evaluate(
        """() => [...document.querySelectorAll('.frame img')].map((i) => {
             const s = getComputedStyle(i); return [s.filter, s.transform, i.offsetWidth, i.offsetHeight] })"""
    )
    assert styles[0] == styles[1]
    assert "matrix(1.56" in styles[0][1]
    boxes = []
    for shown in ("#right", "#left", "#right"):
        reader.keys("x")
        assert reader.page.locator("#stage figure:visible").count() == 1
        boxes.append(reader.page.locator(f"{shown} .frame").bounding_box())
    assert boxes[0] == boxes[1] == boxes[2]
    reader.keys("v")
    assert reader.page.locator("#stage figure:visible").count() == 2
    before = reader.page.evaluate("Reading.view.state")
    reader.page.mouse.move(300, 300)
    reader.page.mouse.down(button="right")
    reader.page.mouse.move(250, 320)
    reader.page.mouse.up(button="right")
    after = reader.page.evaluate("Reading.view.state")
    assert after["window"] < before["window"]
    assert after["level"] > before["level"]
    assert (after["x"], after["y"]) == (before["x"], before["y"])
    reader.close()


SCREENS = {"laptop": (1280, 800), "tablet": (1024, 768), "upright tablet": (768, 1024)}
TAPPED = "button, .chip, textarea, summary, input:not([type=radio], [type=checkbox])"


@pytest.mark.parametrize(
    "screen", ["tablet", *(pytest.param(s, marks=pytest.mark.slow) for s in ("laptop", "upright tablet"))]
)
def test_a_finger_is_enough_and_everything_is_in_sight(browser, folder, screen):
    """No scrolling to answer, targets that a finger hits, two fingers zoom."""
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=True)
    reader = Reader(context, url(folder[0]), f"touch-{width}")
    page = reader.page
    page.tap("#intro .go")
    for n in range(1, 5):
        reader.at(f"Image {n} of")
        page.tap("input[name=grade][value='2']")
        page.tap("input[name=confidence][value='3']")
        page.tap("#next")
    page.tap("#gate .go")
    reader.at("Pair 1 of")
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
        width,
        height,
    ]
    for element in page.locator(TAPPED).locator("visible=true").all():
        box = element.bounding_box()
        assert box["height"] >= 40, element
        assert box["width"] >= 30, element
        assert box["x"] >= 0, element
        assert box["x"] + box["width"] <= width, element
        assert box["y"] + box["height"] <= height, element
    frame = page.locator("#left .frame").bounding_box()
    assert min(frame["width"], frame["height"]) >= 320
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    touch = context.new_cdp_session(page)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", None)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    view = page.evaluate("Reading.view.state")
    assert view["zoom"] == pytest.approx(2, rel=0.05)
    assert abs(view["x"]) < 0.05
    reader.close()
    context.close()


CONTRASTS = """() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const out = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest(':disabled') || e.closest('.sr')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    out.push([e.textContent.trim(), (a + 0.05) / (b + 0.05)]);
  }
  return out;
}"""
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, dialog, progress, img[src]')].filter((e) =>
  e.checkVisibility() && !(e.textContent.trim() || e.ariaLabel || e.alt || e.getAttribute('aria-labelledby') ||
  [...(e.labels || [])].some((l) => l.textContent.trim()))).map((e) => e.outerHTML)"""


@pytest.mark.parametrize("theme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_text_has_contrast_and_controls_have_names(context, folder, theme):
    """WCAG AA, 1.4.3 and 4.1.2, on every screen and with both banners."""
    reader = Reader(context, url(folder[0]), f"aa-{theme}")
    reader.see("#intro")
    if theme == "light":
        reader.page.click("#theme")
    seen = 0

    def look():
        nonlocal seen
        found = reader.page.evaluate(CONTRASTS)
        seen += len(found)
        assert [f for f in found if f[1] < 4.5] == []
        assert reader.page.evaluate(NAMELESS) == []

    look()
    reader.page.locator("#intro .go").focus()
    reader.keys("Enter")
    reader.at("Image 1 of")
    reader.keys("Enter", "2")
    reader.page.evaluate("for (const id of ['alert', 'notice']) document.getElementById(id).hidden = false")
    look()
    reader.page.evaluate("for (const id of ['alert', 'notice']) document.getElementById(id).hidden = true")
    reader.keys("?")
    reader.see("#keys")
    look()
    reader.keys("Escape")
    reader.grade(1, 4)
    look()
    reader.open2()
    look()
    assert seen > 100
    reader.close()


@pytest.mark.slow
def test_letter_keys_can_be_switched_off_and_clicked_buttons_do_not_keep_the_keys(context, folder):
    """WCAG 2.1.4; and after a click on a tool, Enter is "next" and the arrows pan, as before the click."""
    reader = Reader(context, url(folder[0]), "letters")
    reader.begin()
    reader.page.click("input[name=grade][value='2']")
    reader.keys("ArrowLeft")
    assert reader.page.locator("input[name=grade][value='2']").is_checked()
    reader.page.click("#invert")
    reader.keys("f", "Enter")
    reader.at("Image 2 of")
    reader.keys("?")
    reader.page.click("#letters")
    reader.keys("Escape", "0", "f", "Enter")
    reader.see("#missing", "the grade")
    reader.page.focus("input[name=grade]")
    reader.keys("Space", "Tab", "Space", "Enter")  # the browser's own keys still do
    reader.at("Image 3 of")
    reader.close()
