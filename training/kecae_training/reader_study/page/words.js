// What the reader is asked, in words.
"use strict";

const Words = (() => {
  // Kellgren and Lawrence 1957, in the usual short form.
  const KL = {
    0: "no features of osteoarthritis",
    1: "doubtful joint-space narrowing, possible osteophytes",
    2: "definite osteophytes, possible joint-space narrowing",
    3: "multiple osteophytes, definite narrowing, some sclerosis, possible deformity",
    4: "large osteophytes, marked narrowing, severe sclerosis, definite deformity",
  };
  const CERTAIN = ["guessing", "unsure", "fairly sure", "sure", "certain"];
  const REAL = ["poor", "doubtful", "acceptable", "good", "excellent"];

  const isKL = (grade) => /^[0-4]$/.test(grade);
  const grade = (name) => (isKL(name) ? `KL ${name}` : name);
  const meaning = (name) => (isKL(name) ? KL[name] : "");
  const scale = (words, keys) =>
    words.map((word, i) => ({ value: String(i + 1), label: String(i + 1), key: keys?.[i], title: word }));

  function questions(phase, grades) {
    if (phase === 1) {
      const keys = Keys.ofGrades(grades);
      return [
        { name: "grade", legend: "Grade", options: grades.map((g, i) => (
          { value: g, label: grade(g), key: keys[i], title: meaning(g) })) },
        { name: "confidence", legend: "How certain are you?", hint: `1 ${CERTAIN[0]} \u2026 5 ${CERTAIN[4]}`,
          options: scale(CERTAIN, Keys.CONFIDENCE.map((k) => k.toUpperCase())) },
      ];
    }
    return [
      { name: "realism", legend: "How realistic is the exchanged image?",
        hint: `1 ${REAL[0]} \u2026 5 ${REAL[4]}: anatomy and look of a radiograph. Keys 1 to 5.`,
        options: scale(REAL) },
      { name: "matches", legend: "Is the change what the new grade says?", options: [
        { value: "yes", label: "Yes", key: "Y" },
        { value: "partly", label: "Partly", key: "P" },
        { value: "no", label: "No", key: "N" },
      ] },
    ];
  }

  const MISSING = {
    grade: "the grade", confidence: "how certain you are", realism: "how realistic it is",
    matches: "whether the change is what the grade says",
  };
  const missing = (names) => `Still open: ${names.map((n) => MISSING[n]).join(", and ")}.`;

  // Why a browser could not keep something, for a sentence.
  function reason(error) {
    const said = `${error.name} ${error.message}`;
    return /quota|full|no_space/i.test(said) ? "the disk, or the browser's fraction of it, is full" : error.message;
  }

  // What a banner says of saving -> {level: "ok" | "notice" | "alert", text}. `lost` is the server's error, `weak` why
  // this browser could not keep the last answer in one place at least.
  function saving({ unsaved, lost, weak, shaken, pending, server }) {
    if (unsaved) {
      return { level: "alert", text: `Your last answer is NOT saved: ${weak}. Free some disk space and press Next ` +
        "again, or download your answers and go on: then they are only in this tab until you download them again." };
    }
    if (lost) {
      const again = lost instanceof Server.Lost;
      return { level: again ? "notice" : "alert", text: `${lost.message} Your answers are kept in this browser; ` +
        `${pending} not yet at the server.${again ? " They are sent again when it is back." : ""}` };
    }
    if (server) return { level: "ok", text: "saved at the server" };
    if (weak) {
      return { level: "notice", text: `This browser did not confirm that your answers are on disk: ${weak}. ` +
        "Download them before you close it." };
    }
    if (shaken) {
      return { level: "notice", text: "Saved. But the disk was full before, and after that a browser can lose all " +
        "that it keeps: download your answers now, and again before you close it." };
    }
    return { level: "ok", text: "saved in this browser" };
  }

  function keys(grades) {
    const k = Keys.ofGrades(grades);
    return [
      ["Phase 1", [
        [k.join(" "), `grade: ${grades.map(grade).join(", ")}`], ["A S D F G", "how certain: 1 2 3 4 5"]]],
      ["Phase 2", [
        ["1 2 3 4 5", "how realistic"], ["Y P N", "yes, partly, no"],
        ["R", "remark; Esc leaves it, Shift+Enter is a new line"],
        ["X", "flicker: the two images in one place, in turn"], ["V", "side by side"]]],
      ["Both", [
        ["Enter", "next"], ["Backspace", "back"], ["Esc", "pause"], ["+ \u2212", "zoom"], ["Arrows", "pan"],
        ["Shift + arrows", "\u2190 \u2192 window, \u2191 \u2193 level"], ["I", "invert"], ["Z", "reset the view"],
        ["M", "what dragging does: pan or window"], ["?", "these keys"]]],
    ];
  }

  return { grade, meaning, isKL, questions, missing, reason, saving, keys };
})();
