// From the first screen to the last: who reads, phase 1, phase 2, the file of answers.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const SCREENS = ["start", "intro", "read", "gate", "finish", "done", "fatal"];
  const study = window.STUDY;
  let session = null, reading = null, screen = null, letters = true;

  function go(name) {
    screen = name;
    for (const other of SCREENS) $(other).hidden = other !== name;
    $("pause").hidden = !["intro", "read", "gate", "finish"].includes(name);
    document.body.dataset.screen = name;
    if (name !== "read") $(name).querySelector("h2").focus({ preventScroll: true });
  }

  function fatal(text) {
    $("fatal-text").textContent = text;
    go("fatal");
  }

  const say = (text) => ($("live").textContent = text);

  // What saving has to say: a banner while something is wrong, a word beside the progress while nothing is.
  function tell({ level, text }) {
    for (const id of ["alert", "notice"]) {
      const box = $(id), line = box.querySelector("p"), shown = level === id ? text : "";
      if (line.textContent !== shown) line.textContent = shown; // said aloud once, not at every saving
      box.hidden = level !== id;
    }
    $("saved").textContent = level === "ok" ? text : "not all saved";
    $("saved").dataset.level = level;
    if (level === "ok" && !$("broken").hidden) reading?.retry(); // the server is back
  }

  function progress(done, all, phase) {
    $("progress").hidden = false;
    $("progress-text").textContent = `Phase ${phase} of 2: ${done} of ${all} answered`;
    $("progress-bar").max = all;
    $("progress-bar").value = done;
  }

  async function enter(typed, from = null) {
    const reader = RecordOf.readerName(typed);
    if (!reader) {
      $("reader-error").textContent = "Accepted are 1 to 40 letters a to z, digits, \"-\" and \"_\".";
      $("reader").setAttribute("aria-invalid", "true");
      $("reader").focus();
      return;
    }
    try {
      session = await Session.begin(study, reader, tell, from);
    } catch (error) {
      $("reader-error").textContent = error.message;
      return;
    }
    navigator.storage?.persist?.().catch(() => {}); // or a browser may clear it after a week without a visit
    reading = Reading.make(study, session, { end, progress, say });
    $("who").textContent = `Reader ${reader}`;
    $("title").textContent = study.title || "Reader study";
    await session.save();
    resume();
  }

  // Where this reader was.
  function resume() {
    const { record } = session;
    if (session.elsewhere) return elsewhere();
    if (record.finished) return finished();
    if (record.opened) return open2();
    if (RecordOf.complete1(study, record)) return end(1);
    if (Object.keys(record.phase1).length || record.draft) return read(1);
    $("intro-count").textContent = String(study.phase1.length);
    return go("intro");
  }

  async function read(phase, pairs = null, last = false) {
    go("read");
    await reading.start(phase, pairs, last);
  }

  function end(phase) {
    if (phase === 1) return gate();
    progress(study.phase2.items.length, study.phase2.items.length, 2);
    return go("finish");
  }

  function gate() {
    progress(study.phase1.length, study.phase1.length, 1);
    $("review").hidden = session.record.opened !== null;
    go("gate");
  }

  // Phase 2 is in a file of its own, which is read only now.
  async function open2() {
    if (!window.PHASE2) {
      if (!(await session.open())) {
        gate();
        return say("Phase 2 opens when your answers are saved.");
      }
      try {
        await script(study.phase2.file + (session.server ? `?reader=${encodeURIComponent(session.reader)}` : ""));
      } catch {
        gate();
        tell({ level: "alert", text: "Phase 2 could not be loaded. Your grades are saved; try again." });
        return;
      }
      if (!window.PHASE2 || (await Hash.digest(window.PHASE2)) !== study.phase2.sha256) {
        return fatal("Its second phase was changed after it was made. Your grades are saved. Tell the organiser.");
      }
    }
    const { items } = window.PHASE2;
    if (RecordOf.complete(study, session.record) && !session.record.draft) {
      await reading.start(2, items, true);
      return end(2);
    }
    return read(2, items);
  }

  function script(src) {
    return new Promise((resolve, reject) => {
      const node = Object.assign(document.createElement("script"), { src, onload: resolve, onerror: reject });
      document.head.append(node);
    });
  }

  function elsewhere() {
    $("done-text").textContent = "Your answers were handed in from another browser. They stay as they are.";
    for (const part of $("done").querySelectorAll(".mine")) part.hidden = true;
    return go("done");
  }

  async function finish() {
    $("finish").querySelector(".go").disabled = true;
    try {
      if (!(await session.finish())) return say("Not finished yet: your answers are not saved everywhere.");
    } finally {
      $("finish").querySelector(".go").disabled = false;
    }
    await done();
    if (!session.server) await download();
  }

  // Finished before: the server may not have heard of it.
  async function finished() {
    if (!session.server || (await session.finish())) return done();
    $("review2").hidden = true;
    return end(2);
  }

  async function done() {
    const file = await session.file();
    $("sum").textContent = file.sha256;
    $("done-text").textContent = session.server
      ? "Your answers are at the server. You need to do nothing else; a copy for yourself is below."
      : "Send the downloaded file to the study's organiser. It holds your answers, no image.";
    $("progress").hidden = true;
    go("done");
  }

  async function download() {
    const file = await session.file();
    const url = URL.createObjectURL(new Blob([Hash.canonical(file)], { type: "application/json" }));
    const name = `${session.reader}-${study.id.slice(0, 8)}${file.complete ? "" : "-incomplete"}.json`;
    const link = Object.assign(document.createElement("a"), { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    say(`Downloaded as ${name}`);
  }

  function pause() {
    if ($("pause").hidden) return;
    if (screen === "read") reading.keepDraft();
    $("paused-text").textContent = session.shaky
      ? "Download your answers before you close this tab: this browser may not be able to keep them."
      : "Your answers are saved. You can close this tab and come back later with the same reader name" +
        (session.server ? "." : " in this browser.");
    $("paused").showModal();
    reading.run();
    session.save();
  }

  const SUBMIT = { intro: () => read(1), gate: open2, finish };

  function onKey(event) {
    if (document.querySelector("dialog[open]") || !session) return;
    const phase = screen === "read" ? reading.phase : 0;
    const action = Keys.action(event, phase, study.grades, letters);
    if (!action) return;
    if (screen !== "read" && !["next", "help", "pause"].includes(action.do)) return;
    event.preventDefault();
    if (action.do === "help") return openHelp();
    if (action.do === "pause") return pause();
    if (screen !== "read") return SUBMIT[screen]?.();
    if (action.do === "answer") return reading.answer(action.name, action.value);
    reading.do(action.do, action.by);
  }

  function refocus() {
    if (screen === "read" && !document.querySelector("dialog[open]")) $("item-title").focus({ preventScroll: true });
  }

  function openHelp() {
    $("keys").showModal();
    reading?.run();
  }

  async function take(file) {
    try {
      const answers = JSON.parse(await file.text());
      await enter(answers.reader ?? "", await RecordOf.imported(study, answers));
    } catch (error) {
      $("reader-error").textContent = error instanceof SyntaxError ? "This is not a file of answers." : error.message;
    }
  }

  function wire() {
    document.addEventListener("keydown", onKey);
    $("who-form").addEventListener("submit", (e) => (e.preventDefault(), enter($("reader").value)));
    $("import").addEventListener("change", () => $("import").files[0] && take($("import").files[0]));
    for (const [name, act] of Object.entries(SUBMIT)) $(name).querySelector(".go").addEventListener("click", act);
    $("panel").addEventListener("submit", (e) => (e.preventDefault(), reading.do("next")));
    $("back").addEventListener("click", () => reading.do("back"));
    $("review").addEventListener("click", () => read(1, null, true));
    $("review2").addEventListener("click", () => read(2, window.PHASE2.items, true));
    $("retry-image").addEventListener("click", () => reading.retry());
    $("tools").addEventListener("click", (e) => reading.do(e.target.closest("[data-do]")?.dataset.do));
    $("fields").addEventListener("change", () => reading.keepDraft());
    $("remark").addEventListener("input", () => reading.keepDraft());
    // After a click the keys belong to the image again: else the arrows would change the clicked answer, and Enter
    // would press the clicked button once more.
    document.addEventListener("click", (e) => e.detail > 0 && e.target.closest("#fields input, button") && refocus());
    $("pause").addEventListener("click", pause);
    $("help").addEventListener("click", openHelp);
    $("theme").addEventListener("click", Screens.theme);
    $("resume").addEventListener("click", () => $("paused").close());
    $("keys-close").addEventListener("click", () => $("keys").close());
    for (const id of ["paused", "keys"]) $(id).addEventListener("close", () => (reading?.run(), refocus()));
    $("letters").addEventListener("change", (e) => (letters = e.target.checked));
    for (const button of document.querySelectorAll(".download")) button.addEventListener("click", download);
    window.addEventListener("beforeunload", (e) => session?.unsaved && e.preventDefault());
    window.addEventListener("pagehide", () => screen === "read" && reading.keepDraft());
    window.addEventListener("storage", (e) => {
      if (session && e.key === Store.keyOf(study.id, session.reader)) {
        $("twice").hidden = false;
      }
    });
  }

  async function boot() {
    if (!study) return fatal("study.js is missing: take the whole folder, as it was built.");
    if (study.format !== "kecae-aug reader study" || study.version !== 2) {
      return fatal("It was made by another version of kecae-aug than this page.");
    }
    if (!globalThis.crypto?.subtle) {
      return fatal("This address is not safe for the browser, so that it cannot compute hashes. Open the folder from " +
        "disk, or by `kecae-aug reader-study serve`, in a current browser.");
    }
    if ((await Hash.digestWithout(study, "id")) !== study.id) {
      return fatal("It was changed after it was made. Take the original folder.");
    }
    document.title = $("title").textContent = study.title || "Reader study";
    Screens.help(study);
    Screens.start(study, enter);
    wire();
    go("start");
    $("reader").focus();
  }

  boot();
})();
