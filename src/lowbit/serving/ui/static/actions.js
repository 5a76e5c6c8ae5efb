// What buttons do: each asks who and why, then tells the server, which writes both into its audit log.

import { ask, inPath } from "./api.js";
import { dialog } from "./dialog.js";
import { capital } from "./words.js";

const BY = "lowbit.by";

const by = () => ({
  name: "by",
  label: "Your name",
  value: sessionStorage.getItem(BY) ?? "",
  required: true,
  note: "It goes into the audit log.",
});
const why = () => ({ name: "why", label: "Why", kind: "area", required: true, note: "It goes into the audit log, too." });

/** Asks for name and reason where no other fields are given, posts, and says `done`. */
function posted({ title, text, submit, danger, fields, to, body, done }) {
  return dialog({
    title,
    text,
    submit,
    danger,
    fields: fields ?? [by(), why()],
    work: async (values) => {
      sessionStorage.setItem(BY, values.by);
      await ask(to, body(values));
      return done;
    },
  });
}

const ROLLOUT = {
  pause: ["Pause this rollout?", "The share stays where it is, and no decision is made until it goes on.", "Pause"],
  resume: ["Go on with this rollout?", "It goes on where it was paused.", "Go on"],
  promote: [
    "Promote the candidate now?",
    "It answers all requests from now on, whatever the guardrails do not know yet. The champion of today stays loaded as the fallback.",
    "Promote",
  ],
  abort: ["Abort this rollout?", "The champion answers all requests again, within a second.", "Abort and roll back"],
};

function rollout(action) {
  return ({ id, model }) => {
    const [title, text, submit] = ROLLOUT[action];
    const done = {
      pause: "Paused.",
      resume: "The rollout goes on.",
      promote: "Promoted.",
      abort: "Aborted: the champion answers everything.",
    }[action];
    return posted({
      title,
      text: [model, text].filter(Boolean).join(": "),
      submit,
      danger: action === "abort",
      to: `v1/rollouts/${inPath(id)}`,
      body: (v) => ({ action, by: v.by, why: v.why }),
      done,
    });
  };
}

const REVIEW = {
  accept: ["Accept this as the new normal?", "What was seen becomes the baseline that later traffic is compared with.", "Accept"],
  rollback: ["Roll the model back?", "What answered before this version answers again.", "Roll back"],
  recalibrate: [
    "Ask for a recalibration?",
    "The wish is kept with the review. lowbit recalibrate makes a challenger out of recent samples.",
    "Ask for it",
  ],
};

function review(action) {
  return ({ id, subject }) => {
    const [title, text, submit] = REVIEW[action];
    const done = {
      accept: "Accepted: this is the baseline now.",
      rollback: "Rolled back.",
      recalibrate: "Kept: a recalibration is wanted.",
    }[action];
    return posted({
      title,
      text: [`${subject}.`, text],
      submit,
      danger: action === "rollback",
      to: `v1/reviews/${inPath(id)}`,
      body: (v) => ({ action, by: v.by, why: v.why }),
      done,
    });
  };
}

/** The plan of a form; what was left empty is left to the server. */
export function planned(values) {
  const plan = { mode: values.mode };
  const steps = values.steps
    .split(/[,;\s]+/)
    .filter(Boolean)
    .map(Number);
  if (values.mode !== "shadow" && steps.length) {
    if (steps.some((step) => !(step > 0 && step <= 100)))
      throw new Error("Steps are per cents above 0 and up to 100, such as 1, 5, 25, 50, 100.");
    plan.steps = steps.map((step) => step / 100);
  }
  for (const name of ["step_s", "min_requests"]) {
    if (values[name] === "") continue;
    if (!(Number(values[name]) >= 0)) throw new Error(`${name === "step_s" ? "Seconds" : "Requests"} must be a number from 0.`);
    plan[name] = Number(values[name]);
  }
  return plan;
}

function start({ model, champion }, context) {
  const found = context.get("v1/registry")?.models.find((each) => each.name === model);
  const versions = [...(found?.versions ?? [])].filter((each) => String(each.number) !== champion).reverse();
  const options = versions.map((each) => ({
    value: `${model}@${each.number}`,
    text: `${model}@${each.number} · ${each.precision} on ${each.runtime}`,
  }));
  const modes = [
    { value: "canary", text: "Canary: a growing share of requests" },
    { value: "ab", text: "A/B: a fixed share until a person decides" },
    { value: "shadow", text: "Shadow: it answers, but nobody gets to see it" },
  ];
  return posted({
    title: `Start a rollout of ${model}`,
    text: `${model}@${champion} is the champion. Guardrails watch the candidate, and a failed one rolls it back.`,
    submit: "Start",
    fields: [
      { name: "candidate", label: "Candidate", kind: "choice", options, value: options[0]?.value },
      { name: "mode", label: "How", kind: "choice", options: modes, value: "canary" },
      { name: "steps", label: "Shares in %", value: "", note: "Empty: 1, 5, 25, 50, 100." },
      { name: "step_s", label: "Seconds a step, at least", kind: "number", note: "Empty: the plan's own default." },
      { name: "min_requests", label: "Requests a step, at least", kind: "number", note: "Empty: the plan's own default." },
      by(),
    ],
    to: "v1/rollouts",
    body: (v) => ({ model, candidate: v.candidate, plan: planned(v), by: v.by }),
    done: `${capital("the rollout of")} ${model} runs.`,
  });
}

function rollback({ model, from, to }) {
  return posted({
    title: `Roll ${model} back?`,
    text: to
      ? `${model}@${from} is the champion; ${model}@${to} takes its place again, within a second.`
      : "What was the champion before takes its place again, within a second.",
    submit: "Roll back",
    danger: true,
    to: `v1/registry/${inPath(model)}`,
    body: (v) => ({ action: "rollback", by: v.by, why: v.why }),
    done: `${model} is rolled back.`,
  });
}

/** By name of `data-do`. */
export const actions = {
  start,
  rollback,
  ...Object.fromEntries(Object.keys(ROLLOUT).map((action) => [`rollout-${action}`, rollout(action)])),
  ...Object.fromEntries(Object.keys(REVIEW).map((action) => [`review-${action}`, review(action)])),
};
