// Which key means what. Letters are taken as they are printed on the key, digits by their place (on a French keyboard
// they need Shift), and letters of a non-Latin keyboard by their place too.
"use strict";

const Keys = (() => {
  const CONFIDENCE = ["a", "s", "d", "f", "g"]; // left to right: 1 to 5
  const MATCHES = { y: "yes", p: "partly", n: "no" };
  const VIEW = { i: "invert", z: "reset", m: "mode", x: "flicker", v: "side", "+": "in", "=": "in", "-": "out" };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  // A grade that is one digit has that digit as its key: "2" for KL 2 can then not be taken for the second grade.
  function ofGrades(grades) {
    const own = grades.every((g) => /^[0-9]$/.test(g));
    return grades.map((g, i) => (own ? g : String(i + 1)));
  }

  function digit(event) {
    if (/^[0-9]$/.test(event.key)) return event.key;
    return /^Digit([0-9])$/.exec(event.code)?.[1] ?? null;
  }

  function letter(event) {
    if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
    if (/^[\x20-\x7e]$/.test(event.key)) return event.key;
    return event.key.length === 1 ? (/^Key([A-Z])$/.exec(event.code)?.[1].toLowerCase() ?? null) : null;
  }

  // What a key press means -> {do, ...} or null: then the browser does what it always does.
  function action(event, phase, grades, letters) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return null;
    const target = event.target;
    if (target.matches("textarea")) {
      if (event.key === "Enter" && !event.shiftKey && !event.repeat) return { do: "next" };
      return event.key === "Escape" ? { do: "leave" } : null;
    }
    if (target.matches("button, summary, a, input[type=checkbox]") && (event.key === "Enter" || event.key === " ")) {
      return null;
    }
    if (event.key in ARROWS) {
      if (target.matches("input[type=radio]")) return null; // the group's own keys
      return { do: event.shiftKey ? "window" : "pan", by: ARROWS[event.key] };
    }
    if (event.repeat && !["+", "=", "-"].includes(event.key)) return null; // a key held down gives one answer
    if (event.key === "Enter") return { do: "next" };
    if (event.key === "Backspace") return { do: "back" };
    if (event.key === "Escape") return { do: "pause" };
    if (!letters) return null; // WCAG 2.1.4: single-character keys can be switched off
    if (event.key === "?") return { do: "help" };
    const number = digit(event);
    if (number !== null) {
      if (phase === 2) return { do: "answer", name: "realism", value: number };
      const at = ofGrades(grades).indexOf(number);
      return at < 0 ? null : { do: "answer", name: "grade", value: grades[at] };
    }
    const key = letter(event);
    if (key in VIEW) return { do: VIEW[key] };
    if (phase === 1 && CONFIDENCE.includes(key)) {
      return { do: "answer", name: "confidence", value: String(CONFIDENCE.indexOf(key) + 1) };
    }
    if (phase === 2 && key in MATCHES) return { do: "answer", name: "matches", value: MATCHES[key] };
    return phase === 2 && key === "r" ? { do: "remark" } : null;
  }

  return { action, ofGrades, CONFIDENCE };
})();
