// What matters now: a running rollout, reviews that wait, who answers.

import { parts } from "../charts.js";
import { h } from "../dom.js";
import { chip, empty, link } from "../parts.js";
import { plural, share } from "../words.js";
import { card as reviewed } from "./review_card.js";
import { card, evidenceOf, headline, open, sentence } from "./rollout_card.js";

export const TITLE = "Now";

const REVIEWS = "v1/reviews?state=open";
const RECENT_S = 900;
const rolloutsOf = (context) => context.get("v1/rollouts")?.rollouts ?? [];

/** Those that a reader of this view wants: open ones, and one that ended a moment ago. */
function shown(context) {
  const running = rolloutsOf(context).filter(open);
  const ended = rolloutsOf(context)
    .filter((each) => !open(each) && Date.now() / 1000 - (each.ended ?? 0) < RECENT_S)
    .sort((a, b) => b.ended - a.ended);
  return running.length ? running : ended.slice(0, 1);
}

export const sources = (context) => [REVIEWS, "v1/registry", "v1/rollouts", ...shown(context).map((each) => evidenceOf(each.id))];

export function draw(context) {
  const rollouts = shown(context);
  const reviews = context.get(REVIEWS)?.reviews ?? [];
  const models = context.get("v1/registry")?.models ?? [];
  return [
    top(context, rollouts, reviews, models),
    rollouts.map((each) => card(each, context.get(evidenceOf(each.id)), context.writes)),
    reviews.length > 0 &&
      h(
        "section",
        { "data-key": "reviews" },
        h("h2", {}, "Waiting for a person"),
        reviews.map((each) => reviewed(each, context.writes)),
      ),
    models.length > 0 &&
      h(
        "section",
        { "data-key": "answers" },
        h("h2", {}, "Who answers"),
        models.map((model) => answers(model)),
      ),
  ];
}

function top(context, rollouts, reviews, models) {
  if (rollouts.length) {
    const [first] = rollouts;
    return [h("h1", {}, headline(first), open(first) && chip(first.state)), h("p", { class: "headline" }, sentence(first))];
  }
  if (reviews.length)
    return [
      h("h1", {}, reviews.length === 1 ? "A review waits" : `${plural(reviews.length, "review")} wait`, chip("open")),
      h("p", { class: "headline" }, "Something changed in the traffic. A person decides what becomes of it."),
    ];
  if (models.length)
    return [
      h("h1", {}, "All quiet", chip("loaded", "serving")),
      h("p", { class: "headline" }, "No rollout runs, and nothing waits for a person."),
    ];
  const why = context.refused("v1/registry");
  return [
    h("h1", {}, "Nothing to roll out"),
    h("p", { class: "headline" }, why ?? "The registry is empty."),
    empty(
      "Put a bundle into a registry and serve it from there.",
      "Traffic and cost are shown without a registry, too.",
      "lowbit registry push build/demo --model fashion",
      "lowbit registry promote fashion@2",
      "lowbit serve fashion@champion --registry registry --api-key-file KEYS",
    ),
  ];
}

/** A model's split between its versions on this server. */
export function answers(model, titled = true) {
  const byNumber = Object.entries(model.aliases).reduce(
    (found, [alias, number]) => found.set(number, [...(found.get(number) ?? []), alias]),
    new Map(),
  );
  const serving = model.versions.filter((each) => each.share > 0 || each.loaded).sort((a, b) => b.share - a.share);
  const kind = (each) => ["champion", "challenger", "fallback"].find((alias) => byNumber.get(each.number)?.includes(alias)) ?? "other";
  const word = (each) => `@${each.number} ${(byNumber.get(each.number) ?? []).join(", ")}`.trim();
  return h(
    "div",
    { class: "card", "data-key": `answers-${model.name}` },
    titled && h("h3", {}, link(model.name, "models")),
    serving.some((each) => each.share > 0)
      ? parts(
          serving.map((each) => ({ part: each.share, kind: kind(each), name: word(each) })),
          `Shares of ${model.name}`,
        )
      : h("p", { class: "note" }, "This server does not serve it."),
    h(
      "ul",
      { class: "legend" },
      serving.map((each) =>
        h(
          "li",
          { "data-key": each.number },
          h("span", { class: `swatch v-${kind(each)}` }),
          `${word(each)}: ${each.share > 0 ? share(each.share) : "loaded, answers nothing"}`,
        ),
      ),
    ),
  );
}
