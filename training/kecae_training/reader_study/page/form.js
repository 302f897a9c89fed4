// Questions as groups of radio buttons: native, so that screen readers, touch and Tab work without help.
"use strict";

const Form = (() => {
  const element = (tag, props = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), props);
    node.append(...children.filter((c) => c !== null));
    return node;
  };

  // question: {name, legend, hint, options: [{value, label, key, title}]}
  function group({ name, legend, hint, options }) {
    const chips = options.map(({ value, label, key, title }) => {
      const input = element("input", { type: "radio", name, value });
      const face = element("span", {}, label, key ? element("kbd", { textContent: key }) : null);
      return element("label", { className: "chip", title: title || "" }, input, face);
    });
    const set = element("fieldset", {},
      element("legend", { textContent: legend }),
      element("div", { className: "chips" }, ...chips),
      hint ? element("p", { className: "hint", textContent: hint }) : null);
    set.style.setProperty("--n", options.length);
    return set;
  }

  function build(box, questions) {
    box.replaceChildren(...questions.map(group));
  }

  const radios = (box, name) => [...box.querySelectorAll(`input[name="${name}"]`)];

  function choose(box, name, value) {
    for (const radio of radios(box, name)) radio.checked = radio.value === String(value);
  }

  const choosable = (box, name, value) => radios(box, name).some((radio) => radio.value === String(value));

  function chosen(box, name) {
    return radios(box, name).find((radio) => radio.checked)?.value ?? null;
  }

  return { build, choose, chosen, choosable, element };
})();
