// Windows of traffic: each variant's latest one against its baseline, and how it went before.

import { course } from "../charts.js";
import { confidence, mean } from "../distribution.js";
import { h } from "../dom.js";
import { chip, empty, more, table, tile } from "../parts.js";
import { clock, count, digits, milliseconds, share, spaced, span } from "../words.js";

export const TITLE = "Traffic";

const WINDOWS = "v1/monitoring/windows?limit=100";

export const sources = () => [WINDOWS];

export function draw(context) {
  const { windows = [], latest = [] } = context.get(WINDOWS) ?? {};
  const groups = grouped(windows);
  const judged = new Map(latest.filter((each) => each.until > 0).map((each) => [name(each), each]));
  const order = [...groups.keys()].sort((a, b) => groups.get(b).at(-1).until - groups.get(a).at(-1).until || a.localeCompare(b));
  return [
    h("h1", {}, "Traffic"),
    h(
      "p",
      { class: "headline" },
      "What each variant answered, beside what it answered when it was measured. FP32 and INT8 have baselines of their own.",
    ),
    order.length
      ? order.map((each) => section(groups.get(each), judged.get(each)))
      : empty(
          context.refused(WINDOWS) ?? "No window is complete yet.",
          "One is kept every now and then (--window-every) once there are requests. Send some:",
          "lowbit loadtest http://127.0.0.1:8000 --model fashion",
        ),
  ];
}

const name = (window) => JSON.stringify([window.model, window.version, window.variant]);

function grouped(windows) {
  const found = new Map();
  for (const each of [...windows].sort((a, b) => a.until - b.until)) found.set(name(each), [...(found.get(name(each)) ?? []), each]);
  return found;
}

/** One variant: the numbers of its newest window, and what the rules say of as many as they need. */
function section(group, judged) {
  const now = group.at(-1);
  const long = judged ?? now;
  const accuracy = long.accuracy;
  return h(
    "section",
    { "data-key": name(now) },
    h("h2", {}, `${now.model}, version ${now.version}`, h("span", { class: "chip v-quantized" }, now.variant)),
    h("p", { class: "note" }, `The last ${span(now.until - now.since)}, to ${clock(now.until)}.`),
    h(
      "div",
      { class: "tiles" },
      tile(
        "Requests",
        count(now.requests),
        `${digits(now.throughput_per_s)} a second; ${count(now.errors)} failed.`,
        trend(group, "requests", (each) => each.requests),
      ),
      tile(
        "Latency p99",
        milliseconds(now.latency_ms?.p99),
        `p50 ${milliseconds(now.latency_ms?.p50)}, p95 ${milliseconds(now.latency_ms?.p95)}.`,
        trend(group, "p99", (each) => each.latency_ms?.p99),
      ),
      now.confidence?.some?.((n) => n > 0) &&
        tile(
          "Confidence",
          digits(mean(now.confidence)),
          `Mean; the baseline's is ${digits(mean(now.baseline))}.`,
          trend(group, "mean confidence", (each) => mean(each.confidence)),
        ),
      accuracy &&
        tile("Accuracy by labels", share(accuracy.value), `[${share(accuracy.low)}, ${share(accuracy.high)}], n = ${count(accuracy.n)}.`),
    ),
    (long.findings ?? []).length > 0 && h("ul", { class: "guardrails" }, long.findings.map(finding)),
    long.findings?.length > 0 &&
      h(
        "p",
        { class: "note" },
        `Judged by ${count(long.recorded)} answers since ${clock(long.since)}. The baseline: ${long.baseline_text ?? "not known yet"}.`,
      ),
    confidence(long.confidence, long.baseline),
    group.length > 1 && more(`All ${group.length} windows`, "windows", history(group)),
  );
}

function trend(group, what, of) {
  const values = group.slice(-60).map(of);
  return values.length > 2 && values.every(Number.isFinite) && course(values, { low: 0, title: `${what}, ${values.length} windows` });
}

/** Over the limit with too few answers is not as before, and no reason to call anybody either. */
function said(each) {
  if (each.review) return chip("fail", "review");
  return each.value > each.limit ? chip("inconclusive", "too few yet") : chip("pass", "as before");
}

const finding = (each) =>
  h(
    "li",
    { "data-key": each.kind },
    h("span", { class: "name" }, spaced(each.kind)),
    h("span", { class: "plot wide" }, each.text),
    said(each),
  );

const history = (group) =>
  table(
    [
      { name: "Until" },
      { name: "Requests", num: true },
      { name: "Failed", num: true },
      { name: "p50", num: true },
      { name: "p99", num: true },
      { name: "Mean confidence", num: true },
    ],
    [...group]
      .reverse()
      .slice(0, 40)
      .map((each) => [
        clock(each.until),
        count(each.requests),
        count(each.errors),
        milliseconds(each.latency_ms?.p50),
        milliseconds(each.latency_ms?.p99),
        digits(mean(each.confidence)),
      ]),
  );
