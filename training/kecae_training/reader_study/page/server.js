// The server of `kecae-aug reader-study serve`, if the page came from one: answers are sent as they are given, kept and
// sent again while it does not answer. From file:// and from any plain web server there is none, and nothing is sent.
"use strict";

const Server = (() => {
  const TIMEOUT = 8000; // ms
  const SERVED = location.protocol === "http:" || location.protocol === "https:";

  class Lost extends Error {} // no answer: keep and try again
  class Refused extends Error {} // it answered no: trying again does not help

  async function call(path, body) {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), TIMEOUT);
    const request = { signal: abort.signal, cache: "no-store" };
    if (body !== undefined) {
      request.method = "POST";
      request.headers = { "Content-Type": "application/json" };
      request.body = Hash.canonical(body);
    }
    let answer, json = null;
    try {
      answer = await fetch(path, request);
      json = await answer.json().catch(() => null);
    } catch {
      throw new Lost("The server does not answer.");
    } finally {
      clearTimeout(timer);
    }
    if (answer.ok && json) return json;
    const reason = (json && json.error) || `status ${answer.status}`;
    if (answer.status >= 500) throw new Lost(`The server could not save: ${reason}`); // 507: its disk is full
    const refused = new Refused(`The server refused: ${reason}`);
    refused.status = answer.status;
    throw refused;
  }

  // One reader at the server, or null where there is no such server. Throws Lost or Refused.
  async function connect(study, reader) {
    if (!SERVED) return null;
    let state;
    try {
      state = await call(`api/state?reader=${encodeURIComponent(reader)}`);
    } catch (error) {
      if (error instanceof Refused && (error.status === 404 || error.status === 405)) return null;
      throw error;
    }
    if (state.study !== study.id) throw new Refused("The server runs another study: reload the page.");
    return link(study, reader, state);
  }

  function link(study, reader, state) {
    const has = { 1: { ...state.phase1 }, 2: { ...state.phase2 } };
    let running = null;

    function pending(record) {
      const out = [];
      for (const phase of [1, 2]) {
        for (const [item, answer] of Object.entries(record[`phase${phase}`])) {
          const known = has[phase][item];
          if (!known || Hash.canonical(known) !== Hash.canonical(answer)) out.push({ phase, item, answer });
        }
      }
      return out;
    }

    async function send(record) {
      for (const { phase, item, answer } of pending(record)) {
        await call("api/answer", { study: study.id, reader, phase, item, answer });
        has[phase][item] = answer;
      }
    }

    return {
      state,
      pending,
      // Send what the server does not have, oldest phase first; one run at a time.
      async flush(record) {
        while (running) await running.catch(() => {});
        running = send(record);
        try {
          await running;
        } finally {
          running = null;
        }
      },
      finish: (file) => call("api/finish", { reader, export: file }),
    };
  }

  return { connect, Lost, Refused, SERVED };
})();
