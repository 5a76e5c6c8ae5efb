// All rollouts; one of them whole at #/rollouts/ID.

import { h } from "../dom.js";
import { chip, empty, link, table, time } from "../parts.js";
import { said, share } from "../words.js";
import { card, evidenceOf, headline, open, sentence } from "./rollout_card.js";

export const TITLE = "Rollouts";

export const sources = (context) => ["v1/rollouts", ...(context.arg ? [evidenceOf(context.arg)] : [])];

export function draw(context) {
  const rollouts = context.get("v1/rollouts")?.rollouts ?? [];
  const chosen = rollouts.find((each) => each.id === context.arg);
  if (chosen)
    return [
      h("h1", {}, headline(chosen), open(chosen) && chip(chosen.state)),
      h("p", { class: "headline" }, sentence(chosen)),
      card(chosen, context.get(evidenceOf(chosen.id)), context.writes),
      h("p", {}, link("All rollouts", "rollouts")),
    ];
  return [
    h("h1", {}, "Rollouts"),
    h("p", { class: "headline" }, "A new version gets a growing share of the requests, and goes back by itself when a guardrail fails."),
    rollouts.length ? list(rollouts) : none(context),
  ];
}

function list(rollouts) {
  const order = [...rollouts].sort((a, b) => open(b) - open(a) || b.started - a.started);
  return table(
    [{ name: "Rollout" }, { name: "State" }, { name: "Share" }, { name: "Started" }, { name: "Ended" }, { name: "Last word" }],
    order.map((each) => [
      [link(`${each.model}@${each.candidate}`, "rollouts", each.id), h("small", {}, `against @${each.champion}`)],
      chip(each.state),
      each.state === "running" || each.state === "paused" ? `${share(each.share)}, step ${each.step + 1}` : `step ${each.step + 1}`,
      time(each.started),
      each.ended ? time(each.ended) : "–",
      said(each.by, each.why),
    ]),
  );
}

const none = (context) =>
  empty(
    context.refused("v1/rollouts") ?? "There has been no rollout yet.",
    context.writes ? "Start one under Models, or on the command line:" : "Start one on the command line:",
    "lowbit rollout start fashion@4",
  );
