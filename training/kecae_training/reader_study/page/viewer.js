// Zoom, pan, window and level of one image, or of two together. The window is exact and linear: an SVG filter, since a
// canvas may not read pixels from file://. out = (grey - (level - window / 2)) / window, cut to 0..1; greys are 0..255.
"use strict";

const Viewer = (() => {
  const ZOOM = [1, 16];
  const WINDOW = [4, 510];
  const START = { zoom: 1, x: 0, y: 0, window: 255, level: 127.5, invert: false };
  const clamp = (v, [lo, hi]) => Math.min(hi, Math.max(lo, v));

  // Slope and intercept of the filter for greys in 0..1.
  function linear({ window, level, invert }) {
    const slope = 255 / window, intercept = (window / 2 - level) / window;
    return invert ? [-slope, 1 - intercept] : [slope, intercept];
  }

  function make(stage, filter, readout) {
    let view = { ...START }, dragMode = "pan";
    const pointers = new Map();

    function draw() {
      const reach = (view.zoom - 1) / 2; // beyond this the image would leave its frame; in fractions of the frame
      view.x = clamp(view.x, [-reach, reach]);
      view.y = clamp(view.y, [-reach, reach]);
      stage.style.setProperty("--zoom", view.zoom);
      stage.style.setProperty("--x", `${view.x * 100}%`);
      stage.style.setProperty("--y", `${view.y * 100}%`);
      const [slope, intercept] = linear(view);
      for (const f of filter.querySelectorAll("feFuncR, feFuncG, feFuncB")) {
        f.setAttribute("slope", slope);
        f.setAttribute("intercept", intercept);
      }
      const size = `${view.zoom.toFixed(1)}\u00d7`;
      readout.textContent =
        `Zoom ${size} \u00b7 W ${Math.round(view.window)} \u00b7 L ${Math.round(view.level)}` +
        (view.invert ? " \u00b7 inverted" : "");
    }

    // Zoom by a factor; the point (px, py), in fractions of the frame from its middle, stays where it is, or moves by
    // (dx, dy). In one step: what is cut to the frame's reach between two steps is lost.
    function zoom(factor, px = 0, py = 0, dx = 0, dy = 0) {
      const next = clamp(view.zoom * factor, ZOOM), ratio = next / view.zoom;
      view = { ...view, zoom: next, x: px + dx - (px - view.x) * ratio, y: py + dy - (py - view.y) * ratio };
      draw();
    }

    function pan(dx, dy) {
      view = { ...view, x: view.x + dx, y: view.y + dy };
      draw();
    }

    function shade(dWindow, dLevel) {
      view.window = clamp(view.window + dWindow, WINDOW);
      view.level = clamp(view.level + dLevel, [0, 255]);
      draw();
    }

    const frameOf = (event) => event.target.closest(".frame")?.getBoundingClientRect();
    const inFrame = (box, x, y) => [(x - box.left) / box.width - 0.5, (y - box.top) / box.height - 0.5];

    stage.addEventListener("wheel", (event) => {
      const box = frameOf(event);
      if (!box) return;
      event.preventDefault();
      zoom(Math.exp(-clamp(event.deltaY, [-100, 100]) / 400), ...inFrame(box, event.clientX, event.clientY));
    }, { passive: false });

    stage.addEventListener("pointerdown", (event) => {
      const box = frameOf(event);
      if (!box || event.button === 1) return;
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      const shading = event.button === 2 || event.shiftKey ? dragMode !== "window" : dragMode === "window";
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, box, shading });
    });

    stage.addEventListener("pointermove", (event) => {
      const p = pointers.get(event.pointerId);
      if (!p) return;
      const dx = event.clientX - p.x, dy = event.clientY - p.y;
      if (pointers.size === 2) {
        pinch(event, p);
      } else if (p.shading) {
        shade((dx / p.box.width) * 255, (dy / p.box.height) * 255);
      } else {
        pan(dx / p.box.width, dy / p.box.height);
      }
      p.x = event.clientX;
      p.y = event.clientY;
    });

    // One of two fingers has moved: their middle goes with them, their distance is the zoom.
    function pinch(event, moved) {
      const other = [...pointers.values()].find((p) => p !== moved), { box } = moved;
      const before = Math.hypot(moved.x - other.x, moved.y - other.y);
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      const [px, py] = inFrame(box, (moved.x + other.x) / 2, (moved.y + other.y) / 2);
      const dx = (event.clientX - moved.x) / 2 / box.width, dy = (event.clientY - moved.y) / 2 / box.height;
      zoom(before > 10 ? after / before : 1, px, py, dx, dy);
    }

    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => pointers.delete(event.pointerId));
    }
    stage.addEventListener("contextmenu", (event) => event.preventDefault()); // the right button shades

    draw();
    return {
      zoom,
      step: (sx, sy) => pan(-0.08 * sx * view.zoom, -0.08 * sy * view.zoom),
      shade,
      invert() {
        view.invert = !view.invert;
        draw();
        return view.invert;
      },
      reset() {
        view = { ...START };
        draw();
      },
      // Another image: the whole of it again; window and invert are the reader's habit and stay.
      next() {
        view = { ...view, zoom: 1, x: 0, y: 0 };
        draw();
      },
      mode() {
        dragMode = dragMode === "pan" ? "window" : "pan";
        return dragMode;
      },
      get state() {
        return { ...view };
      },
    };
  }

  return { make, linear };
})();
