// The screen on which images are read: one item after the other, of phase 1 or phase 2.
"use strict";

const Reading = (() => {
  const $ = (id) => document.getElementById(id);
  const figures = { left: $("left"), right: $("right") };
  const view = Viewer.make($("stage"), $("window"), $("readout"));

  // hooks: {end(): all answered and "next" pressed, progress(done, all, phase), say(text)}
  function make(study, session, hooks) {
    const names = { 1: ["grade", "confidence"], 2: ["realism", "matches"] };
    const images1 = new Map(study.phase1.map((entry) => [entry.item, entry]));
    let images2 = null, phase = 1, at = 0, ready = false, busy = false, layout = "side";

    const items = () => session.order[`phase${phase}`];
    const item = () => items()[at];
    const answers = () => session.record[`phase${phase}`];
    const shown = () => document.visibilityState && !$("read").hidden;

    // Begin a phase, or come back to it: at the answer in the making, else at the first open item.
    function start(number, pairs = null, last = false) {
      phase = number;
      if (pairs) images2 = new Map(pairs.map((entry) => [entry.item, entry]));
      Form.build($("fields"), Words.questions(phase, study.grades));
      document.body.dataset.phase = String(phase);
      const draft = session.record.draft;
      const open = items().findIndex((i) => !answers()[i]);
      at = draft?.phase === phase && items().includes(draft.item) ? items().indexOf(draft.item) : open;
      if (at < 0 || last) at = items().length - 1;
      return show();
    }

    const pictures = (id) => {
      if (phase === 1) return [["left", images1.get(id).image, images1.get(id).sha256, "Knee radiograph"]];
      const pair = images2.get(id);
      return [
        ["left", pair.original, pair.sha256[0], `Original, ${Words.grade(pair.before)}`],
        ["right", pair.exchanged, pair.sha256[1], `Exchanged, should show ${Words.grade(pair.after)}`],
      ];
    };

    async function show() {
      const id = item(), draft = session.record.draft;
      const saved = answers()[id], current = draft?.phase === phase && draft.item === id ? draft.answer : saved;
      setReady(false);
      Clock.reset(current?.milliseconds ?? 0);
      view.next();
      for (const name of names[phase]) Form.choose($("fields"), name, current?.[name] ?? "");
      $("remark").value = current?.remark ?? "";
      $("missing").textContent = "";
      $("back").disabled = at === 0;
      $("item-title").textContent = `${phase === 1 ? "Image" : "Pair"} ${at + 1} of ${items().length}`;
      $("task").textContent = phase === 1 ? "" : task(images2.get(id));
      arrange("side");
      hooks.progress(Object.keys(answers()).length, items().length, phase);
      $("item-title").focus({ preventScroll: true });
      await load(id);
    }

    const task = (pair) =>
      `Left: the original, ${Words.grade(pair.before)}. Right: the exchanged image, which should show ` +
      `${Words.grade(pair.after)}.`;

    async function load(id) {
      $("broken").hidden = true;
      const wanted = pictures(id);
      for (const [side, , , text] of wanted) figures[side].querySelector("figcaption").textContent = text;
      try {
        await Promise.all(wanted.map(([side, url, sha256, text]) =>
          Images.show(figures[side].querySelector("img"), url, sha256, `${text}, ${$("item-title").textContent}`)));
      } catch (error) {
        if (id !== item()) return;
        $("broken").hidden = false;
        $("broken").querySelector("span").textContent = error.message;
        return;
      }
      if (id !== item()) return; // the reader has gone on
      setReady(true);
      run();
      const next = items()[at + 1];
      if (next) pictures(next).forEach(([, url]) => Images.ahead(url));
    }

    function setReady(yes) {
      ready = yes;
      $("stage").setAttribute("aria-busy", String(!yes));
    }

    const run = () => Clock.run(ready && shown() && !document.querySelector("dialog[open]"));

    function current() {
      const out = { milliseconds: Clock.read(), at: RecordOf.now() };
      for (const name of names[phase]) {
        const value = Form.chosen($("fields"), name);
        if (value !== null) out[name] = name === "confidence" || name === "realism" ? Number(value) : value;
      }
      if (phase === 2) out.remark = wellFormed($("remark").value.trim());
      return out;
    }

    const wellFormed = (text) => (text.toWellFormed ? text.toWellFormed() : text); // half a character has no UTF-8

    function keepDraft() {
      if (!session.record.finished && !(phase === 1 && session.record.opened) && !unchanged(current())) {
        session.draft({ phase, item: item(), answer: current() });
      }
    }

    // An answer that is looked at again and left as it was keeps its time and its date.
    function unchanged(answer) {
      const saved = answers()[item()];
      return !!saved && [...names[phase], "remark"].every((name) => saved[name] === answer[name]);
    }

    async function next() {
      if (busy || !ready) return;
      const answer = current(), open = names[phase].filter((name) => answer[name] === undefined);
      if (open.length) {
        $("missing").textContent = Words.missing(open);
        return;
      }
      busy = true;
      $("next").setAttribute("aria-busy", "true");
      try {
        const safe = unchanged(answer) && !session.unsaved ? true : await session.answer(phase, item(), answer);
        hooks.progress(Object.keys(answers()).length, items().length, phase);
        if (!safe) {
          $("missing").textContent = "Not saved: see above.";
          return;
        }
      } catch (error) {
        $("missing").textContent = error.message; // phase 2 was opened in another tab
        return;
      } finally {
        busy = false;
        $("next").removeAttribute("aria-busy");
      }
      await forward();
    }

    // The next item; after the last one the first that is still open.
    async function forward() {
      const open = items().findIndex((i) => !answers()[i]);
      if (at + 1 < items().length) at += 1;
      else if (open >= 0) at = open;
      else {
        Clock.run(false);
        hooks.end(phase);
        return;
      }
      await show();
    }

    async function back() {
      if (busy || at === 0) return;
      keepDraft();
      at -= 1;
      await show();
    }

    function arrange(how) {
      layout = how;
      $("stage").dataset.layout = phase === 1 ? "left" : how;
    }

    const actions = {
      next, back,
      in: () => view.zoom(1.25),
      out: () => view.zoom(0.8),
      pan: ([x, y]) => view.step(x, y),
      window: ([x, y]) => view.shade(8 * x, 4 * y),
      reset() {
        view.reset();
        $("invert").setAttribute("aria-pressed", "false");
      },
      invert: () => $("invert").setAttribute("aria-pressed", String(view.invert())),
      mode: () => ($("mode").firstChild.textContent = `Drag: ${view.mode()} `),
      flicker() {
        if (phase !== 2) return;
        arrange(layout === "right" ? "left" : "right");
        hooks.say(figures[layout].querySelector("figcaption").textContent);
      },
      side: () => phase === 2 && arrange("side"),
      remark: () => phase === 2 && $("remark").focus(),
      leave: () => $("item-title").focus(),
    };

    return {
      start,
      keepDraft,
      run,
      retry: () => load(item()),
      answer(name, value) {
        if (!Form.choosable($("fields"), name, value)) return;
        Form.choose($("fields"), name, value);
        $("missing").textContent = "";
        hooks.say(`${name} ${value}`);
        keepDraft();
      },
      do: (what, by) => actions[what]?.(by),
      get phase() {
        return phase;
      },
    };
  }

  return { make, view };
})();
