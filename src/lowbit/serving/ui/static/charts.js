// Drawings in SVG. Colours come from the style sheet by class, so that light and dark need no second drawing; all of them fit any width.

import { h } from "./dom.js";
import { share } from "./words.js";

const at = (value, low, high) => `${(100 * Math.min(Math.max((value - low) / (high - low || 1), 0), 1)).toFixed(2)}%`;

/** Shares of the total in about `bins` equal groups of neighbouring counts. */
export function regrouped(counts, bins) {
  const total = counts.reduce((sum, n) => sum + n, 0) || 1;
  const wide = Math.max(1, Math.ceil(counts.length / bins));
  const found = [];
  for (let first = 0; first < counts.length; first += wide) {
    found.push(counts.slice(first, first + wide).reduce((sum, n) => sum + n, 0) / total);
  }
  return found;
}

function stairs(shares, top) {
  const y = (part) => (100 - (96 * Math.sqrt(part)) / Math.sqrt(top)).toFixed(2);
  return `M0 100${shares.map((part, i) => `V${y(part)}H${i + 1}`).join("")}V100`;
}

/**
 * Two distributions over the same bins: now as an area, what it is compared with as an outline; heights are square roots.
 * @param {{now: number[]|null, before: number[]|null, title: string, description: string, bins?: number}} what counts
 */
export function overlaid({ now, before, title, description, bins = 64 }) {
  const [area, outline] = [now, before].map((counts) => (counts?.some((n) => n > 0) ? regrouped(counts, bins) : null));
  const width = (area ?? outline ?? [0]).length;
  const top = Math.max(...(area ?? []), ...(outline ?? []), 1e-9);
  return h(
    "svg",
    {
      class: "histogram",
      viewBox: `0 0 ${width} 100`,
      preserveAspectRatio: "none",
      width: "100%",
      height: 150,
      role: "img",
      "aria-label": `${title}. ${description}`,
    },
    area && h("path", { class: "area", d: `${stairs(area, top)}z` }),
    outline && h("path", { class: "outline", d: stairs(outline, top) }),
  );
}

/** A value with what is sure about it (`low` to `high`), and two limits: beyond `fails` is bad, up to `passes` is good enough. */
export function strip({ value, low, high, fails, passes, kind }) {
  const to = Math.max(2 * passes, 1.25 * value);
  const from = Math.min(low ?? 0, value) < 0 ? Math.min(-to / 2, 1.25 * value) : 0;
  const place = (x) => at(x, from, to);
  const line = (name, x, y) => h("line", { class: name, x1: place(x), x2: place(x), y1: y, y2: 26 - y });
  return h(
    "svg",
    { class: `interval v-${kind}`, width: "100%", height: 26, "aria-hidden": "true" },
    h("rect", { class: "track", y: 11, width: "100%", height: 4, rx: 2 }),
    h("rect", { class: "over", x: place(passes), y: 2, width: `${(100 - parseFloat(place(passes))).toFixed(2)}%`, height: 22 }),
    from < 0 && line("zero", 0, 5),
    (Number.isFinite(low) || Number.isFinite(high)) &&
      h("line", { class: "span", x1: place(low ?? from), x2: place(high ?? to), y1: 13, y2: 13 }),
    line("margin", passes, 2),
    line("budget", fails, 1),
    h("circle", { class: "mark", cx: place(value), cy: 13, r: 5.5 }),
  );
}

/** How a number went: a line through equally spaced values (null leaves a gap), and a limit. */
export function course(values, { limit = null, low = null, high = null, title, kind = "keep" }) {
  const real = values.filter(Number.isFinite);
  const bottom = low ?? Math.min(...real, limit ?? Infinity);
  const top = high ?? Math.max(...real, limit ?? -Infinity);
  const y = (value) => (96 - (92 * (value - bottom)) / (top - bottom || 1)).toFixed(2);
  let path = "";
  let gap = true;
  values.forEach((value, i) => {
    if (!Number.isFinite(value)) gap = true;
    else {
      path += `${gap ? "M" : "L"}${i} ${y(value)}`;
      gap = false;
    }
  });
  return h(
    "svg",
    {
      class: `course v-${kind}`,
      viewBox: `0 0 ${Math.max(values.length - 1, 1)} 100`,
      preserveAspectRatio: "none",
      width: "100%",
      height: 44,
      role: "img",
      "aria-label": title,
    },
    Number.isFinite(limit) && h("line", { class: "budget", x1: 0, x2: Math.max(values.length - 1, 1), y1: y(limit), y2: y(limit) }),
    h("path", { class: "under", d: path && bottom >= 0 && !values.includes(null) ? `${path}L${values.length - 1} 100L0 100z` : "" }),
    h("path", { class: "stroke", d: path }),
  );
}

/** Parts of a whole beside each other. */
export function parts(list, label) {
  let start = 0;
  const drawn = list.map(({ part, kind, name }) => {
    const x = start;
    start += part;
    return h(
      "rect",
      { class: `v-${kind}`, x: `${(100 * x).toFixed(2)}%`, width: `${(100 * part).toFixed(2)}%`, height: 14 },
      h("title", {}, `${name}: ${share(part)}`),
    );
  });
  return h(
    "svg",
    { class: "parts", width: "100%", height: 14, role: "img", "aria-label": label },
    h("rect", { class: "track", width: "100%", height: 14 }),
    drawn,
  );
}
