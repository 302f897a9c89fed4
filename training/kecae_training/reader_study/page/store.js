// A reader's record in this browser, in two places, each read back after writing.
//   localStorage is written at once and outlives the tab, but the browser puts it on disk seconds later, and keeps
//   silent if it cannot: of a Chromium killed 3 s after an answer, that answer was lost.
//   IndexedDB with durability "strict" answers only when the disk has it, and lost nothing. So only that is safe.
"use strict";

const Store = (() => {
  const PREFIX = "kecae-reader-study";
  const TIMEOUT = 4000; // ms; a database that another tab blocks must not stop the reading
  const keyOf = (study, reader) => `${PREFIX}/${study}/${reader}`;

  function parsed(text, study) {
    try {
      const record = JSON.parse(text);
      return record && record.study === study && record.phase1 && record.phase2 ? record : null;
    } catch {
      return null;
    }
  }

  const local = {
    read(study, reader) {
      try {
        return parsed(localStorage.getItem(keyOf(study, reader)), study);
      } catch {
        return null; // storage is forbidden; writing will say so
      }
    },
    write(record) {
      const key = keyOf(record.study, record.reader), text = JSON.stringify(record);
      localStorage.setItem(key, text); // QuotaExceededError leaves the old text in place
      if (localStorage.getItem(key) !== text) throw new Error("localStorage did not keep what was written");
    },
    // Readers of this study who have used this browser.
    readers(study) {
      try {
        const start = keyOf(study, "");
        return Object.keys(localStorage).filter((k) => k.startsWith(start)).map((k) => k.slice(start.length)).sort();
      } catch {
        return [];
      }
    },
  };

  function timely(promise) {
    const late = new Promise((_, fail) => setTimeout(() => fail(new Error("IndexedDB does not answer")), TIMEOUT));
    return Promise.race([promise, late]);
  }

  let opening = null;
  function database() {
    opening ??= new Promise((resolve, reject) => {
      const request = indexedDB.open(PREFIX, 1);
      request.onupgradeneeded = () => request.result.createObjectStore("records");
      request.onsuccess = () => {
        request.result.onclose = () => (opening = null);
        resolve(request.result);
      };
      request.onerror = () => reject(request.error);
    }).catch((error) => {
      opening = null; // the next answer tries again
      throw error;
    });
    return opening;
  }

  // After an error of the disk the browser closes the connection, sometimes without a word: then open it anew, once.
  async function transaction(mode, work, again = true) {
    const db = await database();
    try {
      return await run(db, mode, work);
    } catch (error) {
      if (error.name !== "InvalidStateError" || !again) throw error;
      opening = null;
      return transaction(mode, work, false);
    }
  }

  function run(db, mode, work) {
    return new Promise((resolve, reject) => {
      const t = db.transaction("records", mode, { durability: "strict" });
      const request = work(t.objectStore("records"));
      t.oncomplete = () => resolve(request.result);
      t.onabort = t.onerror = () => reject(t.error || request.error || new Error("IndexedDB aborted"));
    });
  }

  const disk = {
    read: (study, reader) =>
      timely(transaction("readonly", (s) => s.get(keyOf(study, reader)))).then(
        (text) => parsed(text, study), () => null,
      ),
    async write(record) {
      const key = keyOf(record.study, record.reader), text = JSON.stringify(record);
      await timely(transaction("readwrite", (s) => s.put(text, key)));
      const back = await timely(transaction("readonly", (s) => s.get(key)));
      if (back !== text) throw new Error("IndexedDB did not keep what was written");
    },
  };

  async function read(study, reader) {
    return RecordOf.merge(local.read(study, reader), await disk.read(study, reader));
  }

  // Write the record in both places -> {local, disk}: null where it worked, else the error.
  async function write(record) {
    const out = { local: null, disk: null };
    try {
      local.write(record);
    } catch (error) {
      out.local = error;
    }
    try {
      await disk.write(record);
    } catch (error) {
      out.disk = error;
    }
    return out;
  }

  // The answer in the making, at each key press: at once, and no harm if it fails.
  function writeDraft(record) {
    try {
      local.write(record);
    } catch {
      // the answer itself will be written with all care
    }
  }

  return { keyOf, read, peek: local.read, write, writeDraft, readers: local.readers };
})();
