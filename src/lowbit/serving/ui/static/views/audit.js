// The audit log: who did what and why, the latest first, with the digest that the chain of all of them ends in.

import { h } from "../dom.js";
import { chip, empty, facts, more, time } from "../parts.js";
import { capital, clock, spaced } from "../words.js";

export const TITLE = "Audit";

const LOG = "v1/registry/audit?limit=100";

export const sources = () => [LOG];

export function draw(context) {
  const found = context.get(LOG);
  const rows = [...(found?.rows ?? [])].sort((a, b) => b.id - a.id);
  return [
    h("h1", {}, "Audit", found && rows.length > 0 && (found.verified ? chip("pass", "verified") : chip("fail", "broken"))),
    h("p", { class: "headline" }, "Every row holds the digest of the row before: a changed or missing one breaks the chain."),
    rows.length
      ? [head(rows[0], found), h("ol", { class: "log" }, rows.map(row))]
      : empty(
          context.refused(LOG) ?? "Nothing was done yet.",
          "Pushes, promotions, rollouts and answers to reviews are written down here.",
          "lowbit registry push build/demo --model fashion",
        ),
  ];
}

const head = (last, found) =>
  h(
    "div",
    { class: "card" },
    facts([
      ["Head", h("code", {}, found.head ?? last.sha256)],
      ["Rows", `${last.id}`],
      [
        "Chain",
        found.verified
          ? "The server checked every row just now. With the head noted elsewhere, lowbit registry verify --head finds a cut-off end, too."
          : ["Trust nothing behind the first broken row. ", ...(found.problems ?? []).map((text) => h("p", { class: "bad" }, text))],
      ],
    ]),
  );

function row(each) {
  const why = each.body?.why;
  return h(
    "li",
    { "data-key": each.id },
    h("div", {}, h("time", {}, clock(each.at))),
    h(
      "div",
      {},
      h(
        "p",
        {},
        h("b", {}, capital(spaced(each.action))),
        ` ${each.subject} `,
        h("span", { class: "soft" }, `by ${each.by}, `, time(each.at)),
      ),
      why && h("p", { class: "note" }, why),
      more("Details", `row-${each.id}`, h("pre", {}, JSON.stringify(each.body, null, 2)), h("p", { class: "note mono" }, each.sha256)),
    ),
  );
}
