// How long an item was in front of the reader, in whole milliseconds: time in which the image is drawn, the tab is
// visible and nothing is paused.
"use strict";

const Clock = (() => {
  let total = 0, since = null, wanted = false;

  function tick() {
    if (since !== null) total += performance.now() - since;
    since = wanted && !document.hidden ? performance.now() : null;
  }
  document.addEventListener("visibilitychange", tick);

  return {
    reset(milliseconds) {
      tick();
      total = milliseconds;
      wanted = false;
      since = null;
    },
    run(on) {
      wanted = on;
      tick();
    },
    read() {
      tick();
      return Math.round(total);
    },
  };
})();
