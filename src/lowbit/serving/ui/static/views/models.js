// Models and their versions: what each is, where it comes from, who answers; rollouts start here.

import { button, h } from "../dom.js";
import { chip, empty, facts, more, time } from "../parts.js";
import { NONE, count, milliseconds, share, short, size } from "../words.js";
import { answers } from "./now.js";

export const TITLE = "Models";

export const sources = () => ["v1/registry", "v1/rollouts"];

export function draw(context) {
  const models = context.get("v1/registry")?.models ?? [];
  return [
    h("h1", {}, "Models"),
    h("p", { class: "headline" }, "Every version with what it was made from. An alias says which one answers."),
    models.length
      ? models.map((model) => section(model, context))
      : empty(
          context.refused("v1/registry") ?? "The registry is empty.",
          "Push a bundle that lowbit optimize wrote:",
          "lowbit registry push build/demo --model fashion",
        ),
  ];
}

function section(model, context) {
  const running = (context.get("v1/rollouts")?.rollouts ?? []).some((each) => each.model === model.name && !each.ended);
  return h(
    "section",
    { "data-key": model.name },
    h("h2", {}, model.name),
    answers(model, false),
    context.writes && buttons(model, running),
    model.aliases.champion === undefined &&
      empty(
        `${model.name} has no champion yet, so nothing can be compared with it.`,
        "Say which version answers:",
        `lowbit registry promote ${model.name}@${model.versions.at(-1)?.number ?? 1}`,
      ),
    [...model.versions].reverse().map((version) => card(model, version)),
  );
}

function buttons(model, running) {
  const { champion, fallback } = model.aliases;
  const others = model.versions.some((each) => each.number !== champion);
  if (champion === undefined) return null;
  return h(
    "div",
    { class: "buttons" },
    others && !running && button("Start a rollout", "start", { model: model.name, champion }, "primary"),
    button("Roll back the champion", "rollback", { model: model.name, from: champion, to: fallback ?? "" }),
  );
}

function card(model, version) {
  const aliases = Object.entries(model.aliases).filter(([, number]) => number === version.number);
  return h(
    "article",
    { class: "card", "data-key": version.number },
    h(
      "h3",
      {},
      `${model.name}@${version.number}`,
      aliases.map(([alias]) => chip(alias)),
      version.share > 0 && h("span", { class: "soft" }, `answers ${share(version.share)}`),
      version.share === 0 && version.loaded && h("span", { class: "soft" }, "loaded"),
    ),
    h("p", {}, `${version.precision} on ${version.runtime}, ${size(version.lineage.artifact_bytes ?? version.size_bytes)}, ${origin(version)}.`),
    h("p", { class: "note" }, "Registered ", time(version.created), ` by ${version.by}`),
    more("Where it comes from", "lineage", lineage(version)),
  );
}

/** Where it comes from, in half a sentence. */
function origin({ parents, lineage: { recipe, calibration } = {} }) {
  if (!parents.length) return "as it was trained";
  const by = recipe ? ` by ${recipe}` : "";
  const on = calibration ? `, calibrated on ${count(calibration.n)} samples` : "";
  return `made from ${parents.map((number) => `@${number}`).join(", ")}${by}${on}`;
}

/** The change in quality, negative = worse, with its interval. */
const against = (delta) => (delta ? `; ${share(-delta.value)} [${share(-delta.ci_high)}, ${share(-delta.ci_low)}] against the source` : "");

function lineage(version) {
  const {
    source,
    calibration,
    validation,
    recipe,
    recipe_sha256,
    preprocess_sha256,
    score,
    latency_ms,
    verdict,
    tools,
    hardware,
    command,
    lowbit_version,
    made,
  } = version.lineage ?? {};
  const listed = (object) =>
    object &&
    Object.entries(object)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ");
  const digest = (text) => text && h("code", { title: text }, short(text));
  return facts([
    ["Version", digest(version.digest)],
    ["Candidate", version.candidate],
    ["Source", source && [`${source.name} `, digest(source.sha256)]],
    ["Made from", version.parents.length ? version.parents.map((number) => `@${number}`).join(", ") : null],
    ["Recipe", recipe && [`${recipe} `, digest(recipe_sha256)]],
    [
      "Calibrated on",
      calibration && [
        `${count(calibration.n)} samples `,
        digest(calibration.sha256),
        calibration.how_selected ? `, ${calibration.how_selected}` : "",
      ],
    ],
    ["Compared on", validation && [`${count(validation.n)} samples `, digest(validation.sha256)]],
    ["Preprocessing", digest(preprocess_sha256)],
    [
      "Score",
      score &&
        `${score.name} ${score.value?.toFixed(4) ?? NONE}, n = ${count(score.n)}${version.parents.length ? against(score.delta) : ""}`,
    ],
    [
      "Latency p50",
      latency_ms &&
        Object.entries(latency_ms)
          .map(([batch, ms]) => `${milliseconds(ms)} at batch ${batch}`)
          .join(", "),
    ],
    ["Verdict", verdict],
    ["Tools", [lowbit_version && `lowbit ${lowbit_version}`, listed(tools)].filter(Boolean).join(", ")],
    ["Hardware", hardware && [hardware.cpu, hardware.cores && `${hardware.cores} cores`, hardware.accelerator].filter(Boolean).join(", ")],
    ["Command", command && h("code", {}, command)],
    ["Made", made && `${made}`.slice(0, 19).replace("T", " ")],
    ["Registered", ["by ", version.by, ", ", time(version.created)]],
  ]);
}
