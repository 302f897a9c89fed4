// What is known of one reader: a plain object, and pure functions on it. No page, no storage.
//   {study, reader, started, opened, finished, phase1: {item: answer}, phase2: {item: answer}, draft}
// `opened` is when phase 2 was opened: from then on no answer of phase 1 changes. `draft` is the answer in the making.
"use strict";

const RecordOf = (() => {
  const FORMAT = "kecae-aug reader answers";
  const SOFTWARE = "kecae-aug reader-study page 2";
  const READER = /^[a-z0-9_-]{1,40}$/;

  const now = () => new Date().toISOString();

  // Names of readers are compared without regard to case, since their files are.
  function readerName(typed) {
    const name = typed.trim().toLowerCase();
    return READER.test(name) ? name : null;
  }

  function fresh(study, reader) {
    return {
      study: study.id, reader, started: now(), opened: null, finished: null, phase1: {}, phase2: {}, draft: null,
    };
  }

  const earlier = (a, b) => (a && b ? (a < b ? a : b) : a || b || null);

  function latest(a, b) {
    const out = { ...a };
    for (const [item, answer] of Object.entries(b)) if (!out[item] || out[item].at < answer.at) out[item] = answer;
    return out;
  }

  // Both records' answers; of two answers to one item the later one. Where only one record has opened phase 2, its
  // phase 1 stands: what the other one says may have been said before, and must not come back. The draft is a's, or b's
  // where a knows of none (undefined).
  function merge(a, b) {
    if (!b) return a;
    if (!a) return b;
    const closed = !!a.opened === !!b.opened ? null : a.opened ? a : b;
    const out = {
      ...a,
      started: earlier(a.started, b.started),
      opened: earlier(a.opened, b.opened),
      finished: earlier(a.finished, b.finished),
      phase1: closed ? closed.phase1 : latest(a.phase1, b.phase1),
      phase2: latest(a.phase2, b.phase2),
    };
    const draft = (a.draft === undefined ? b.draft : a.draft) ?? null;
    const answered = draft && out[`phase${draft.phase}`][draft.item];
    out.draft = answered && answered.at >= draft.answer.at ? null : draft;
    return out;
  }

  const phase1Items = (study) => study.phase1.map((entry) => entry.item);
  const open = (answers, items) => items.filter((item) => !answers[item]);
  const complete1 = (study, record) => open(record.phase1, phase1Items(study)).length === 0;
  const complete = (study, record) =>
    complete1(study, record) && open(record.phase2, study.phase2.items).length === 0;

  // The answers as a file: what the key is scored against. Complete or not, it says which.
  async function exported(study, record, order) {
    const all = complete(study, record) && record.finished !== null;
    const out = {
      format: FORMAT, version: 2, study: study.id, reader: record.reader, software: SOFTWARE,
      started: record.started, finished: all ? record.finished : null, complete: all, order,
      phase1: record.phase1, phase2: record.phase2,
    };
    return { ...out, sha256: await Hash.digest(out) };
  }

  // A record from an exported file; Error with the reason if it is not this study's or was edited.
  async function imported(study, file) {
    if (!file || file.format !== FORMAT || file.version !== 2) throw new Error("This is not a file of answers.");
    if (file.study !== study.id) throw new Error("These answers belong to another study.");
    if ((await Hash.digestWithout(file, "sha256")) !== file.sha256) {
      throw new Error("This file was changed after it was written.");
    }
    const record = {
      ...fresh(study, file.reader), started: file.started, finished: file.finished,
      phase1: file.phase1, phase2: file.phase2, draft: undefined,
    };
    if (complete1(study, record)) record.opened = file.started;
    return record;
  }

  return { now, readerName, fresh, merge, phase1Items, open, complete1, complete, exported, imported };
})();
