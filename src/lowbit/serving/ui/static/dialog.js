// Questions to the reader. A dialog keeps the focus while it is open, and the browser gives it back when it closes.

import { h } from "./dom.js";

/**
 * Asks, and does what was asked for while the dialog is still open, so that a refusal can be read beside what was typed.
 * @param {{title: string, text?: string|string[], fields?: object[], submit: string, danger?: boolean, work: function}} what
 *   a field is {name, label, value, kind: "text"|"password"|"area"|"choice"|"number", options, note, required}
 * @returns {Promise<any>} what the work gave; null where the reader did not want to
 */
export function dialog({ title, text = [], fields = [], submit, danger = false, work }) {
  const inputs = fields.map((field) => [field, drawn(field)]);
  const problem = h("p", { class: "problem", role: "alert" });
  const send = h("button", { type: "submit", class: danger ? "danger" : "primary" }, submit);
  const cancel = h("button", { type: "button" }, "Cancel");
  const form = h(
    "form",
    { novalidate: true },
    h("h2", { id: "asked" }, title),
    [text].flat().map((line) => h("p", {}, line)),
    inputs.map(([field, input]) => row(field, input)),
    problem,
    h("div", { class: "buttons" }, send, cancel),
  );
  const box = h("dialog", { "aria-labelledby": "asked" }, form);
  document.body.append(box);
  return new Promise((resolve) => {
    let result = null;
    const close = () => box.close();
    cancel.addEventListener("click", close);
    box.addEventListener("keydown", (event) => wrap(event, box));
    box.addEventListener("close", () => {
      box.remove();
      if (document.activeElement === document.body) document.getElementById("main").focus(); // what opened it is gone
      resolve(result);
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const empty = inputs.find(([field, input]) => field.required && !input.value.trim());
      problem.textContent = empty ? `${empty[0].label}: this is needed.` : "";
      if (empty) {
        empty[1].focus();
        return;
      }
      send.disabled = true;
      try {
        result = (await work(Object.fromEntries(inputs.map(([field, input]) => [field.name, input.value.trim()])))) ?? true;
        close();
      } catch (error) {
        problem.textContent = error.message;
        send.disabled = false;
        send.focus();
      }
    });
    box.showModal();
    (inputs.find(([field, input]) => field.required && !input.value)?.[1] ?? inputs[0]?.[1] ?? send).focus();
  });
}

function drawn({ name, kind = "text", value = "", options = [], required = false, note }) {
  const common = { id: `f-${name}`, name, "aria-required": required ? "true" : null, "aria-describedby": note ? `n-${name}` : null };
  if (kind === "area") {
    const area = h("textarea", { ...common, rows: 3 });
    area.value = value;
    return area;
  }
  if (kind === "choice") {
    return h(
      "select",
      common,
      options.map((each) => h("option", { value: each.value, selected: each.value === value }, each.text)),
    );
  }
  const input = h("input", {
    ...common,
    type: kind === "password" ? "password" : "text",
    inputmode: kind === "number" ? "decimal" : null,
    autocomplete: "off",
    spellcheck: "false",
  });
  input.value = value;
  return input;
}

function row({ name, label, note }, input) {
  return h(
    "div",
    { class: "field" },
    h("label", { for: `f-${name}` }, label),
    input,
    note && h("p", { class: "note", id: `n-${name}` }, note),
  );
}

/** Tab goes round within the dialog, not out into the browser's own frame. */
function wrap(event, box) {
  if (event.key !== "Tab") return;
  const stops = [...box.querySelectorAll("input, select, textarea, button:not(:disabled)")];
  const [from, to] = event.shiftKey ? [stops.at(0), stops.at(-1)] : [stops.at(-1), stops.at(0)];
  if (document.activeElement === from) {
    event.preventDefault();
    to.focus();
  }
}
