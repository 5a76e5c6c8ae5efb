// What requests cost and what energy they take, each with how it is known.

import { h } from "../dom.js";
import { empty, table, tile } from "../parts.js";
import { count, digits, joules, milliseconds, money, share, span } from "../words.js";

export const TITLE = "Cost";

const COST = "v1/cost";

export const sources = () => [COST];

export function draw(context) {
  const found = context.get(COST);
  const rows = found?.models ?? [];
  const priced = rows.find((each) => each.per_million);
  return [
    h("h1", {}, "Cost"),
    h(
      "p",
      { class: "headline" },
      "Per variant, since this server began. Every figure says how it was found; figures found in different ways are not compared.",
    ),
    found?.server?.requests > 0 && whole(found.server),
    rows.length
      ? table(
          [
            { name: "Variant" },
            { name: "Requests", num: true },
            { name: "CPU a request", num: true },
            { name: "A million requests" },
            { name: "Energy an inference" },
          ],
          rows.map(row),
        )
      : empty(
          context.refused(COST) ?? "Nothing was answered yet.",
          "Costs need a price. Without one only the CPU time is known:",
          "lowbit serve build/demo --price 0.0416",
        ),
    h(
      "p",
      { class: "lead" },
      rows.length > 0 && `CPU: ${rows[0].cpu_method}. `,
      priced && `A million requests: ${priced.per_million.method}. `,
      "Energy says its method. What a month costs: ",
      h("code", {}, "lowbit assess"),
      ".",
    ),
  ];
}

/** The bill of the whole server at the load that it has: idle time included. */
function whole(server) {
  const { usd, method, price } = server.per_million ?? {};
  return h(
    "div",
    { class: "tiles" },
    tile("Requests", count(server.requests), `in ${span(server.seconds)}.`),
    tile("CPU in use", share(server.cpu_use), `of ${server.cores} cores; ${digits(server.cpu_seconds)} CPU seconds in all.`),
    tile(
      "A million requests, as busy as now",
      Number.isFinite(usd) ? money(usd) : "no price",
      Number.isFinite(usd)
        ? `${method}. ${money(price.usd_per_hour)} an hour (${price.source}).`
        : "Give one with --price when the server starts.",
    ),
  );
}

function row(each) {
  const price = each.per_million ?? {};
  const energy = each.energy ?? {};
  const apart = Number.isFinite(energy.low) && Number.isFinite(energy.high) && energy.low !== energy.high;
  return [
    [`${each.model}, version ${each.version}`, h("small", {}, each.variant)],
    count(each.requests),
    [milliseconds(1000 * each.cpu_seconds_per_request), h("small", {}, `${digits(each.cpu_seconds)} s in all`)],
    Number.isFinite(price.usd)
      ? [money(price.usd), h("small", {}, `at ${money(price.price.usd_per_hour)} an hour (${price.price.source})`)]
      : [h("span", { class: "soft" }, "no price"), h("small", {}, "--price says what an hour costs")],
    Number.isFinite(energy.joules_per_inference)
      ? [joules(energy.joules_per_inference), h("small", {}, [apart && `${joules(energy.low)} to ${joules(energy.high)}; `, energy.method])]
      : [h("span", { class: "soft" }, "unavailable"), h("small", {}, "no meter, and no model of this machine")],
  ];
}
