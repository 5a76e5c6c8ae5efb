// Confidences as they are against what they were, with what to read from the picture in words.

import { overlaid } from "./charts.js";
import { h } from "./dom.js";
import { legend } from "./parts.js";
import { count, digits, share } from "./words.js";

/** Mean of a histogram over [0, 1]; null where nothing is counted. */
export function mean(counts) {
  const total = (counts ?? []).reduce((sum, n) => sum + n, 0);
  return total ? counts.reduce((sum, n, bin) => sum + (n * (bin + 0.5)) / counts.length, 0) / total : null;
}

const total = (counts) => (counts ?? []).reduce((sum, n) => sum + n, 0);

/** Shares of classes, in their order; null where nothing was counted. */
export function classes(now, before, names = ["now", "baseline"]) {
  if (!total(now) && !total(before)) return null;
  const longest = Math.max(now?.length ?? 0, before?.length ?? 0);
  const filled = [now, before].map((counts) => (total(counts) ? [...counts, ...Array(longest - counts.length).fill(0)] : null));
  const told = filled
    .map((counts, i) => counts && `${names[i]}: ${common(counts)}`)
    .filter(Boolean)
    .join("; ");
  return h(
    "figure",
    {},
    overlaid({
      now: filled[0],
      before: filled[1],
      title: `Classes, ${names.join(" and ")}`,
      description: `In their order, square-root scale. ${told}.`,
      bins: longest,
    }),
    h(
      "div",
      { class: "axis-x" },
      [`class 0`, `class ${longest - 1}`].map((text) => h("span", {}, text)),
    ),
    legend(names[0], filled[1] && names[1]),
    h("figcaption", { class: "note" }, `${told}.`),
  );
}

/** The three classes that came most. */
function common(counts) {
  const order = counts.map((n, label) => [n, label]).sort((a, b) => b[0] - a[0]);
  return order
    .slice(0, 3)
    .map(([n, label]) => `class ${label} ${share(n / total(counts))}`)
    .join(", ");
}

/** A figure with both distributions; null where there is nothing of either. */
export function confidence(now, before, names = ["now", "baseline"]) {
  if (!total(now) && !total(before)) return null;
  const [ours, theirs] = [mean(now), mean(before)];
  const told = [
    ours !== null && `${names[0]}: mean ${digits(ours)}, n = ${count(total(now))}`,
    theirs !== null && `${names[1]}: mean ${digits(theirs)}, n = ${count(total(before))}`,
    ours !== null && theirs !== null && `the mean moved by ${share(ours / theirs - 1)}`,
  ].filter(Boolean);
  return h(
    "figure",
    {},
    overlaid({
      now,
      before,
      title: `Confidence, ${names.join(" and ")}`,
      description: `From 0 to 1, square-root scale. ${told.join("; ")}.`,
    }),
    h(
      "div",
      { class: "axis-x" },
      ["0", "0.25", "0.5", "0.75", "1"].map((text) => h("span", {}, text)),
    ),
    legend(names[0], theirs !== null && names[1]),
    h("figcaption", { class: "note" }, `${told.join("; ")}.`),
  );
}
