// Reviews: open ones with their buttons, and what people answered before.

import { h } from "../dom.js";
import { empty, more } from "../parts.js";
import { plural } from "../words.js";
import { card } from "./review_card.js";

export const TITLE = "Reviews";

const ALL = "v1/reviews?state=all";
const SHOWN = 20;

export const sources = () => [ALL];

export function draw(context) {
  const reviews = context.get(ALL)?.reviews ?? [];
  const open = reviews.filter((each) => each.state === "open");
  const closed = reviews.filter((each) => each.state !== "open");
  return [
    h("h1", {}, "Reviews"),
    h(
      "p",
      { class: "headline" },
      open.length
        ? `${plural(open.length, "shift")} in the traffic ${open.length === 1 ? "waits" : "wait"} for a person.`
        : "Nothing waits for a person.",
    ),
    reviews.length === 0 &&
      empty(
        context.refused(ALL) ?? "There has been no review yet.",
        "One opens by itself when confidences, predictions or inputs are no longer what they were; the rules need some 2,000 answers.",
        "lowbit reviews list STATE",
      ),
    open.map((each) => card(each, context.writes)),
    closed.length > 0 &&
      more(
        `${plural(closed.length, "review")} answered before`,
        "closed",
        closed.slice(0, SHOWN).map((each) => card(each, false)),
      ),
  ];
}
