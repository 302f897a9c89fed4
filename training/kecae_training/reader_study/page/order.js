// In which order a reader sees the items: sorted by SHA-256 of seed, reader, phase and item. A shuffle that anybody can
// repeat in one line of any language, and that differs between readers and phases.
"use strict";

const Order = (() => {
  async function of(study, reader, phase, items) {
    const keyed = await Promise.all(
      items.map(async (item) => [await Hash.text(`${study.order_seed}/${reader}/${phase}/${item}`), item]),
    );
    return keyed.sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([, item]) => item);
  }
  return { of };
})();
