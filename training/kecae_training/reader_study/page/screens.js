// What the screens hold that depends on the study, and the light or dark page.
"use strict";

const Screens = (() => {
  const $ = (id) => document.getElementById(id);
  const { element } = Form;

  function help(study) {
    const row = ([key, what]) =>
      element("tr", {},
        element("th", { scope: "row" }, element("kbd", { textContent: key })),
        element("td", { textContent: what }));
    const table = ([title, rows]) =>
      element("table", {}, element("caption", { textContent: title }), element("tbody", {}, ...rows.map(row)));
    $("key-table").replaceChildren(...Words.keys(study.grades).map(table));
  }

  // Who has read in this browser, and what the grades mean.
  function start(study, enter) {
    const known = Store.readers(study.id).map((reader) =>
      element("button", { type: "button", textContent: reader, onclick: () => enter(reader) }));
    if (known.length) {
      $("known").replaceChildren(
        element("p", { textContent: "Or go on with what was begun in this browser:" }),
        element("div", { className: "row" }, ...known));
    }
    const title = study.grades.every(Words.isKL) ? "Grades after Kellgren and Lawrence:" : "Grades:";
    const line = (grade) => [Words.grade(grade), Words.meaning(grade)].filter(Boolean).join(": ");
    $("scale").replaceChildren(
      element("p", { textContent: title }),
      element("ul", {}, ...study.grades.map((grade) => element("li", { textContent: line(grade) }))));
  }

  function theme() {
    const light = document.documentElement.dataset.theme === "dark";
    document.documentElement.dataset.theme = light ? "light" : "dark";
    $("theme").textContent = light ? "Dark" : "Light";
  }

  return { help, start, theme };
})();
