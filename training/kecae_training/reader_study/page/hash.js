// Canonical JSON and its SHA-256, as kecae_training.reader_study.canonical writes them: keys sorted by code point, no
// spaces, no floats. Python and this file must agree to the byte, or honest answers are refused as edited.
"use strict";

const Hash = (() => {
  function byCodePoint(a, b) {
    const x = [...a], y = [...b]; // code points; JavaScript's own sort compares UTF-16 units
    for (let i = 0; i < Math.min(x.length, y.length); i++) {
      const d = x[i].codePointAt(0) - y[i].codePointAt(0);
      if (d) return d;
    }
    return x.length - y.length;
  }

  // Text of a value made of integers, strings, booleans, null, lists and objects; TypeError on anything else.
  function canonical(value) {
    if (value === null || typeof value === "boolean" || typeof value === "string") return JSON.stringify(value);
    if (typeof value === "number") {
      if (!Number.isSafeInteger(value)) throw new TypeError(`canonical JSON has integers only, got ${value}`);
      return String(value === 0 ? 0 : value); // -0
    }
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (typeof value !== "object") throw new TypeError(`canonical JSON cannot hold a value of type ${typeof value}`);
    const keys = Object.keys(value).sort(byCodePoint);
    return `{${keys.map((k) => `${JSON.stringify(k)}:${canonical(value[k])}`).join(",")}}`;
  }

  async function sha256(bytes) {
    const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return [...sum].map((b) => b.toString(16).padStart(2, "0")).join("");
  }

  const text = (string) => sha256(new TextEncoder().encode(string));
  const digest = (value) => text(canonical(value));

  // The hash of an object without one of its keys: where the hash itself is written.
  function digestWithout(object, key) {
    const { [key]: _, ...rest } = object;
    return digest(rest);
  }

  return { canonical, sha256, text, digest, digestWithout };
})();
