// Showing an image only when it is there, whole and the study's own.
"use strict";

const Images = (() => {
  const checked = new Map(); // url -> promise of true; what was checked once is not read again

  // The file's hash. Only where the page was served: from file:// no script may read a file.
  function check(url, sha256) {
    if (!Server.SERVED) return Promise.resolve(true);
    if (!checked.has(url)) {
      const test = fetch(url, { cache: "no-store" }).then(async (answer) => {
        if (!answer.ok) throw new Error("The image could not be loaded.");
        if ((await Hash.sha256(await answer.arrayBuffer())) !== sha256) {
          throw new Error("This image is not the one that the study was made with. Tell the study's organiser.");
        }
        return true;
      });
      test.catch(() => checked.delete(url));
      checked.set(url, test);
    }
    return checked.get(url);
  }

  // Show url in img; Error in plain words if it cannot be. The name of the file is never shown.
  async function show(img, url, sha256, alt) {
    img.removeAttribute("src");
    img.alt = alt;
    try {
      await check(url, sha256);
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // fetch's error where nobody answers
      throw new Error("The image could not be loaded: the server does not answer.");
    }
    img.src = url;
    try {
      await img.decode();
    } catch {
      img.removeAttribute("src");
      throw new Error("The image could not be loaded. Is the study's folder complete?");
    }
  }

  // Have the browser fetch an image before it is needed.
  function ahead(url) {
    if (url) new Image().src = url;
  }

  return { show, ahead };
})();
