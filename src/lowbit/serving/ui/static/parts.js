// Building blocks that several views share.

import { button, h } from "./dom.js";
import { ago, clock, moment, spaced } from "./words.js";

export const chip = (state, text = spaced(state)) => h("span", { class: `chip v-${state}` }, text);

export const tile = (label, value, note, drawing) =>
  h(
    "div",
    { class: "tile" },
    h("p", { class: "label" }, label),
    h("p", { class: "value" }, value),
    drawing,
    h("p", { class: "note" }, note),
  );

/** When, as the reader counts; the clock's time beside it on request. */
export function time(value) {
  const at = moment(value);
  return at === null ? "–" : h("time", { datetime: new Date(at * 1000).toISOString(), title: clock(at) }, ago(at));
}

export const facts = (pairs) =>
  h(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );

/** Nothing here: why, and the command that changes it. */
export const empty = (title, text, ...commands) =>
  h(
    "div",
    { class: "empty" },
    h("p", {}, title),
    text && h("p", { class: "note" }, text),
    commands.length > 0 &&
      h(
        "pre",
        {},
        commands.map((line, i) => [i > 0 && "\n", shell(line)]),
      ),
  );

/** A command whose words do not break where a line ends. */
const shell = (line) => line.split(" ").map((word, i) => [i > 0 && " ", h("span", { class: "word" }, word)]);

/** Rows of {cells}; on a phone each row becomes a block with its columns' names. */
export function table(columns, rows) {
  return h(
    "div",
    { class: "table" },
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          columns.map(({ name, num }) => h("th", { scope: "col", class: num ? "num" : null }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((cells) =>
          h(
            "tr",
            {},
            cells.map((cell, i) =>
              i === 0
                ? h("th", { scope: "row" }, cell)
                : h("td", { "data-label": columns[i].name, class: columns[i].num ? "num" : null }, h("span", {}, cell)),
            ),
          ),
        ),
      ),
    ),
  );
}

export const more = (title, key, ...inside) => h("details", { "data-key": key }, h("summary", {}, title), inside);

export const link = (text, ...parts) => h("a", { href: `#/${parts.map(encodeURIComponent).join("/")}` }, text);

/** A legend beside drawings: what the area and the outline are. */
export function legend(now, before) {
  return h(
    "ul",
    { class: "legend" },
    h("li", {}, h("span", { class: "swatch area" }), now),
    before && h("li", {}, h("span", { class: "swatch line" }), before),
  );
}

export { button };
