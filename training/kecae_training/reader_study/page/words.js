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
      { name: "realism", legend: "How realistic is the changed image?", hint: `1 ${REAL[0]} \u2026 5 ${REAL[4]}: anatomy ` +
        "and look of a radiograph. Keys 1 to 5.", options: scale(REAL) },
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

  function keys(grades) {
    const k = Keys.ofGrades(grades);
    return [
      ["Phase 1", [
        [k.join(" "), `grade: ${grades.map(grade).join(", ")}`], ["A S D F G", "how certain: 1 2 3 4 5"]]],
      ["Phase 2", [
        ["1 2 3 4 5", "how realistic"], ["Y P N", "yes, partly, no"], ["R", "remark; Esc leaves it, Shift+Enter is a new line"],
        ["X", "flicker: the two images in one place, in turn"], ["V", "side by side"]]],
      ["Both", [
        ["Enter", "next"], ["Backspace", "back"], ["Esc", "pause"], ["+ \u2212", "zoom"], ["Arrows", "pan"],
        ["Shift + arrows", "\u2190 \u2192 window, \u2191 \u2193 level"], ["I", "invert"], ["Z", "reset the view"],
        ["M", "what dragging does: pan or window"], ["?", "these keys"]]],
    ];
  }

  return { grade, meaning, isKL, questions, missing, keys };
})();
