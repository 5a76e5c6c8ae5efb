// One review: what was found, in numbers and pictures, and the three answers.

import { classes, confidence } from "../distribution.js";
import { button, h } from "../dom.js";
import { chip, facts, time } from "../parts.js";
import { clock, count, digits, share, spaced } from "../words.js";

const KINDS = {
  confidence: "Confidence shifted",
  low_tail: "More answers with little confidence",
  predictions: "Other predictions than before",
  inputs: "Other inputs than before",
  accuracy: "Accuracy fell",
  perplexity: "Perplexity of answers shifted",
  length: "Answers of other lengths than before",
  refusals: "More refusals",
  errors: "Errors",
  latency: "Latency",
};
const POINTS = new Set(["confidence", "low_tail", "predictions", "accuracy", "perplexity", "refusals", "errors"]);

export const title = (review) => KINDS[review.kind] ?? spaced(review.kind);
export const subject = (review) => `${review.model}, version ${review.version}, ${review.variant}`;

/** The whole card. */
export function card(review, writes) {
  const evidence = review.evidence ?? {};
  const finding = evidence.finding ?? {};
  const shown = (value) => (POINTS.has(review.kind) ? share(value) : digits(value));
  return h(
    "section",
    { "data-key": `review-${review.id}`, class: `card v-${review.state}` },
    h("h3", {}, title(review), chip(review.state)),
    h(
      "p",
      { class: "note" },
      `${subject(review)}. Opened `,
      time(review.opened),
      review.seen > 1 && `, seen in ${count(review.seen)} looks`,
      ".",
    ),
    finding.text && h("p", {}, finding.text),
    facts([
      ["Found", Number.isFinite(finding.value) ? `${shown(finding.value)}; the limit is ${shown(finding.limit)}` : null],
      [
        "In",
        Number.isFinite(evidence.since) ? `${count(evidence.n)} answers from ${clock(evidence.since)} to ${clock(evidence.until)}` : null,
      ],
      ["Against", evidence.baseline?.text],
      ["Until then", review.state === "open" ? review.policy?.text : null],
      [
        "Answered",
        review.state === "open"
          ? null
          : [`${spaced(review.state)} by ${review.by ?? "somebody"}, `, time(review.closed), review.why ? `: ${review.why}` : ""],
      ],
    ]),
    review.kind === "predictions"
      ? classes(evidence.window?.tally?.predictions, evidence.baseline?.tally?.predictions)
      : confidence(evidence.confidence, evidence.baseline_confidence),
    writes && review.state === "open" && buttons(review),
  );
}

function buttons(review) {
  const about = { id: review.id, subject: `${title(review)}: ${subject(review)}` };
  return h(
    "div",
    { class: "buttons" },
    button("Accept as normal", "review-accept", about, "primary"),
    button("Ask for recalibration", "review-recalibrate", about),
    button("Roll back", "review-rollback", about, "danger"),
  );
}
