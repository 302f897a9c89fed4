// One reader's session: the record in memory, what is saved where, and the order of the items. No page: it tells its
// listener what a banner should say.
"use strict";

const Session = (() => {
  const RETRY = 2000; // ms between two tries to reach a lost server

  // tell({level: "ok" | "notice" | "alert", text}): called when the state of saving may have changed.
  async function begin(study, reader, tell, start = null) {
    let record = RecordOf.merge(start, await Store.read(study.id, reader));
    let server = null, lost = null, weak = null, unsaved = false, downloaded = false;
    // onDisk: this browser has confirmed a write to its disk. shaken: and later could not. Chromium 150 then closes its
    // database, opens it again when there is room, and throws it away as a whole if it crashes after that.
    let onDisk = false, shaken = false;

    async function connect() {
      server = await Server.connect(study, reader);
      if (!server) return;
      const { phase1, phase2, started } = server.state;
      const known = {
        ...RecordOf.fresh(study, reader), started: started || RecordOf.now(), phase1, phase2, draft: undefined,
      };
      if (server.state.opened) known.opened = known.started; // perhaps in another browser
      if (Object.keys(phase1).length) record = RecordOf.merge(known, record);
    }

    function report() {
      const pending = server && record ? server.pending(record).length : 0;
      tell(Words.saving({ unsaved, lost, weak, shaken, pending, server: server !== null }));
    }

    // Send what the server lacks; never throws. True if there is no server or it has everything.
    async function flush() {
      try {
        if (!server && Server.SERVED && lost) await connect();
        if (server) await server.flush(record);
        lost = null;
        return true;
      } catch (error) {
        lost = error;
        return false;
      } finally {
        report();
      }
    }

    // Keep the record: on disk, in localStorage, at the server. True if it is safe to go on.
    async function save() {
      record = RecordOf.merge(record, Store.peek(study.id, reader)); // another tab may have answered too
      const wrote = await Store.write(record);
      weak = wrote.disk || wrote.local ? Words.reason(wrote.disk || wrote.local) : null;
      shaken ||= onDisk && wrote.disk !== null;
      onDisk ||= !wrote.disk;
      const kept = !wrote.disk || (!onDisk && !wrote.local); // on a full disk localStorage says that all is well
      const sending = flush();
      const sent = kept ? null : (await sending) && server !== null;
      unsaved = !kept && !sent;
      if (!unsaved) downloaded = false;
      report();
      return !unsaved || downloaded;
    }

    try {
      await connect();
    } catch (error) {
      if (error instanceof Server.Refused) throw error;
      lost = error;
    }
    const known = record !== null;
    record ??= RecordOf.fresh(study, reader);
    const order = {
      phase1: await Order.of(study, reader, 1, RecordOf.phase1Items(study)),
      phase2: await Order.of(study, reader, 2, study.phase2.items),
    };
    setInterval(() => lost instanceof Server.Lost && flush(), RETRY);

    return {
      reader, order, known,
      get record() {
        return record;
      },
      get server() {
        return server !== null || lost !== null;
      },
      // Handed in from another browser, which alone knows the file of answers.
      get elsewhere() {
        return server !== null && server.state.finished && record.finished === null;
      },
      get unsaved() {
        return unsaved;
      },
      // Whether the reader should take a file before leaving.
      get shaky() {
        return (unsaved || shaken || weak !== null) && server === null;
      },
      save,
      flush,
      async answer(phase, item, answer) {
        if (record.finished || (phase === 1 && record.opened)) throw new Error("This answer is closed.");
        const draft = record.draft?.item === item ? null : record.draft;
        record = { ...record, draft, [`phase${phase}`]: { ...record[`phase${phase}`], [item]: answer } };
        return save();
      },
      draft(draft) {
        record = { ...record, draft };
        Store.writeDraft(record);
      },
      // Close phase 1: only when everything is where it belongs, since the server gives phase 2 to nobody else.
      async open() {
        if (!(await flush())) return false;
        record = { ...record, opened: record.opened || RecordOf.now(), draft: null };
        return save();
      },
      // The file of answers, for the reader and the server; marks that the reader has taken it away.
      async file() {
        const out = await RecordOf.exported(study, record, order);
        downloaded = unsaved;
        return out;
      },
      async finish() {
        record = { ...record, finished: record.finished || RecordOf.now(), draft: null };
        if (!(await save())) return false;
        if (!(await flush())) return false;
        if (server) {
          try {
            await server.finish(await RecordOf.exported(study, record, order));
          } catch (error) {
            lost = error;
            report();
            return false;
          }
        }
        return true;
      },
    };
  }

  return { begin };
})();
