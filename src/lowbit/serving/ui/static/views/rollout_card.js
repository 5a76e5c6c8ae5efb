// One rollout: where it stands, what both arms did in this step, what every guardrail says, and what was decided.

import { course, strip } from "../charts.js";
import { confidence } from "../distribution.js";
import { button, h } from "../dom.js";
import { quantile, spread } from "../latency.js";
import { chip, legend, more, tile, time } from "../parts.js";
import { capital, clock, count, milliseconds, plural, said, share, spaced, span } from "../words.js";

export const NAMES = {
  errors: "Errors",
  p99: "Latency p99",
  disagreement: "Disagreement",
  confidence: "Confidence",
  accuracy: "Accuracy by labels",
  cost: "Cost a request",
};
const MODES = { canary: "canary", ab: "A/B", shadow: "shadow" };
const SHOWN = 6;

/** Where a rollout's evidence is. A decision is large, and the server reads each of them: not all of them every second. */
export const evidenceOf = (id) => `v1/rollouts/${encodeURIComponent(id)}?limit=40`;
export const open = (rollout) => rollout.state === "running" || rollout.state === "paused";

/** "Canary at 5 %" and the like. */
export function headline(rollout) {
  if (rollout.state === "paused") return `Paused at ${share(rollout.share)}`;
  if (rollout.state !== "running") return capital(spaced(rollout.state));
  return rollout.mode === "shadow" ? "In the shadow" : `${capital(MODES[rollout.mode] ?? rollout.mode)} at ${share(rollout.share)}`;
}

/** What a rollout is about, in a sentence. */
export function sentence(rollout) {
  const who = `${rollout.model}@${rollout.candidate} against ${rollout.model}@${rollout.champion}`;
  if (!open(rollout)) return `${who}. ${rollout.why ?? ""}`;
  const verdicts = rollout.decision?.verdicts ?? [];
  const failed = verdicts.filter((each) => each.verdict === "fail").map(nameOf);
  const waits = verdicts.filter((each) => each.verdict === "inconclusive").length;
  const state = failed.length
    ? `Failed: ${failed.join(", ")}.`
    : verdicts.length === 0
      ? "Nothing is known yet."
      : waits
        ? `Nothing failed; ${plural(waits, "guardrail")} cannot tell yet.`
        : "Every guardrail holds.";
  return `${who}, step ${rollout.step + 1} of ${stepsOf(rollout).length}. ${state}`;
}

const nameOf = (verdict) => NAMES[verdict.guardrail] ?? capital(spaced(verdict.guardrail));
const stepsOf = (rollout) => (Array.isArray(rollout.steps) ? rollout.steps : []);

/** The whole card. `detail` is what GET /v1/rollouts/ID gave, or null. */
export function card(rollout, detail, writes) {
  const now = Date.now() / 1000;
  return h(
    "section",
    { "data-key": `rollout-${rollout.id}`, class: `v-${rollout.state}` },
    h("h2", {}, `${rollout.model}@${rollout.candidate} against @${rollout.champion}`, chip(rollout.state)),
    h(
      "p",
      { class: "note" },
      `${capital(MODES[rollout.mode] ?? rollout.mode)}, started `,
      time(rollout.started),
      rollout.ended ? ["; ended ", time(rollout.ended)] : open(rollout) && `; in this step for ${span(now - rollout.step_since)}`,
      open(rollout) && rollout.why ? `. ${said(rollout.by, rollout.why)}` : ` by ${rollout.by}.`,
    ),
    track(rollout),
    writes && open(rollout) && buttons(rollout),
    detail?.evidence && hard(detail.evidence),
    detail?.evidence && arms(rollout, detail.evidence),
    guardrails(rollout, detail),
    detail?.evidence && distributions(rollout, detail.evidence),
    decisions(detail?.decisions ?? []),
    detail?.plan && more("Plan", "plan", h("pre", {}, JSON.stringify(detail.plan, null, 2))),
  );
}

function track(rollout) {
  const place = (i) => (rollout.state === "promoted" || i < rollout.step ? "done" : i === rollout.step ? "now" : "");
  const text = (i) => ({ done: "done", now: "now", "": "" })[place(i)];
  const steps = stepsOf(rollout);
  return (
    steps.length > 1 &&
    h(
      "ol",
      { class: "steps", "aria-label": "Steps" },
      steps.map((step, i) =>
        h(
          "li",
          { class: place(i) || null, "aria-current": i === rollout.step ? "step" : null },
          share(step),
          h("span", { class: "hidden" }, ` ${text(i)}`),
        ),
      ),
    )
  );
}

const hard = (evidence) =>
  evidence.hard?.length > 0 && h("p", { class: "bad", "data-key": "hard" }, `Stopped at once: ${evidence.hard.join(", ")}.`);

function arms(rollout, { baseline, canary }) {
  const both = canary.requests + baseline.requests;
  const rate = (arm) => (arm.requests ? arm.errors / arm.requests : null);
  const p = (arm, q) => 1000 * (quantile(arm.seconds, q) ?? NaN);
  const seconds = (arm) => (arm.busy_n ? (1000 * arm.busy_s) / arm.busy_n : NaN);
  return h(
    "div",
    { class: "tiles", "data-key": "arms" },
    tile("Requests", count(canary.requests), `of ${count(both)} in this step: ${share(canary.requests / both)} went to the candidate.`),
    tile(
      "Errors",
      share(rate(canary)),
      `${count(canary.errors)} failed. The champion: ${share(rate(baseline))}, ${count(baseline.errors)} of ${count(baseline.requests)}.`,
    ),
    tile(
      "Latency p99",
      milliseconds(p(canary, 0.99)),
      `The champion: ${milliseconds(p(baseline, 0.99))}. p50: ${milliseconds(p(canary, 0.5))} and ${milliseconds(p(baseline, 0.5))}.`,
    ),
    Number.isFinite(seconds(canary)) &&
      tile("Compute a row", milliseconds(seconds(canary)), `The champion takes ${milliseconds(seconds(baseline))}.`),
    canary.shadowed + baseline.shadowed > 0 &&
      tile(
        "Disagreement",
        share(canary.disagreed / canary.shadowed),
        `with full precision, of ${plural(canary.shadowed, "row")}. The champion: ${share(baseline.disagreed / baseline.shadowed)}.`,
      ),
    canary.labelled + baseline.labelled > 0 &&
      tile(
        "Right by labels",
        share(canary.right / canary.labelled),
        `${plural(canary.labelled, "label")}. The champion: ${share(baseline.right / baseline.labelled)} of ${count(baseline.labelled)}.`,
      ),
  );
}

// Guardrails --------------------------------------------------------------------------------------------------------------

function guardrails(rollout, detail) {
  const verdicts = rollout.decision?.verdicts ?? [];
  if (!verdicts.length) return h("p", { class: "lead", "data-key": "guardrails" }, "No guardrail has been looked at yet.");
  return h(
    "div",
    { "data-key": "guardrails" },
    h("h3", {}, "Guardrails"),
    h(
      "ul",
      { class: "guardrails" },
      verdicts.map((each) => guardrail(each, detail)),
    ),
    h(
      "p",
      { class: "note" },
      "How much worse the candidate is. The dot is what was seen, the bar what is possible however often one looks. A guardrail fails ",
      "once the whole bar is right of the dashed line, and passes once it is left of the shaded area. ",
      h("span", { class: "past" }, "On the right: how the value went, look by look."),
    ),
  );
}

function guardrail(verdict, detail) {
  const { guardrail: kind, value, low, high } = verdict;
  const { tolerance = verdict.limit, margin = verdict.limit } = detail?.plan?.guardrails?.find((each) => each.kind === kind) ?? {};
  return h(
    "li",
    { "data-key": kind },
    h("span", { class: "name" }, nameOf(verdict)),
    h(
      "div",
      { class: "plot" },
      Number.isFinite(value) && strip({ value, low, high, fails: tolerance, passes: margin, kind: verdict.verdict }),
    ),
    h("div", { class: "past" }, past(kind, detail?.decisions ?? [], tolerance)),
    chip(verdict.verdict),
    h(
      "p",
      { class: "note" },
      [verdict.why, !verdict.why.includes("n=") && `n = ${count(verdict.n)}.`, !verdict.needed && "The step does not wait for it."]
        .filter(Boolean)
        .join(" "),
    ),
  );
}

function past(kind, history, limit) {
  const looks = history.map((each) => each.verdicts?.find((verdict) => verdict.guardrail === kind));
  const values = looks.map((each) => each?.value ?? null);
  const real = values.filter(Number.isFinite);
  if (real.length < 3) return null;
  return course(values, {
    limit,
    low: Math.min(0, ...real),
    title: `${NAMES[kind] ?? kind} over the last ${values.length} looks`,
    kind: looks.at(-1)?.verdict,
  });
}

function distributions(rollout, { baseline, canary }) {
  const names = [`@${rollout.candidate}`, `@${rollout.champion}`];
  const times = spread(canary.seconds, baseline.seconds, `Latency of ${names.join(" and ")}`);
  const sure = confidence(canary.confidence, baseline.confidence, names);
  if (!times && !sure) return null;
  return h(
    "div",
    { class: "columns", "data-key": "distributions" },
    sure && h("div", {}, h("h3", {}, "Confidence in this step"), sure),
    times &&
      h(
        "div",
        {},
        h("h3", {}, "Latency in this step"),
        h(
          "figure",
          {},
          times.drawing,
          h(
            "div",
            { class: "axis-x" },
            times.ends.map((end) => h("span", {}, end)),
          ),
          legend(names[0], names[1]),
        ),
      ),
  );
}

// Decisions ---------------------------------------------------------------------------------------------------------------

function decisions(history) {
  const latest = [...history].reverse();
  const told = latest.filter((each, i) => each.action !== "hold" || i === 0);
  if (!latest.length) return null;
  return h(
    "div",
    { "data-key": "decisions" },
    h("h3", {}, "Decisions"),
    h("ol", { class: "log" }, told.slice(0, SHOWN).map(decided)),
    latest.length > told.length &&
      more(`All of the last ${plural(latest.length, "look")}`, "looks", h("ol", { class: "log" }, latest.slice(0, 50).map(decided))),
  );
}

function decided(each) {
  const reasons = each.reasons?.length ? each.reasons.join(" ") : "";
  return h(
    "li",
    { "data-key": each.id ?? each.at },
    h("time", {}, clock(each.at)),
    h(
      "div",
      {},
      h("p", {}, h("b", {}, capital(spaced(each.action))), Number.isInteger(each.step) && ` in step ${each.step + 1}`),
      reasons && h("p", { class: "note" }, reasons),
    ),
  );
}

function buttons(rollout) {
  const facts = { id: rollout.id, model: `${rollout.model}@${rollout.candidate}` };
  return h(
    "div",
    { class: "buttons", "data-key": "buttons" },
    rollout.state === "running" ? button("Pause", "rollout-pause", facts) : button("Go on", "rollout-resume", facts, "primary"),
    button("Promote now", "rollout-promote", facts),
    button("Abort", "rollout-abort", facts, "danger"),
  );
}
