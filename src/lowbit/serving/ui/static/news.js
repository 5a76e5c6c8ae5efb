// What changed since the last look, in sentences for the live region.

import { capital, share, spaced } from "./words.js";

let before = null;

/** Tells what rollouts and reviews did since it was called last. */
export function news(context, say) {
  const rollouts = context.get("v1/rollouts")?.rollouts;
  const reviews = context.get("v1/reviews?state=open")?.reviews;
  const now = {
    rollouts: rollouts && new Map(rollouts.map((each) => [each.id, `${each.state} ${each.step}`])),
    reviews: reviews && new Set(reviews.map((each) => each.id)),
  };
  const told = before === null ? [] : [...changedRollouts(rollouts, before.rollouts), ...newReviews(reviews, before.reviews)];
  before = { rollouts: now.rollouts ?? before?.rollouts, reviews: now.reviews ?? before?.reviews };
  if (told.length) say(told.join(" "));
}

function changedRollouts(rollouts, known) {
  return (known ? (rollouts ?? []) : [])
    .filter((each) => known.get(each.id) !== `${each.state} ${each.step}`)
    .map((each) =>
      each.state === "running"
        ? `${each.model}@${each.candidate} answers ${share(each.share)} of requests.`
        : `${capital(spaced(each.state))}: ${each.model}@${each.candidate}.`,
    );
}

function newReviews(reviews, known) {
  return (known ? (reviews ?? []) : [])
    .filter((each) => !known.has(each.id))
    .map((each) => `A review was opened: ${spaced(each.kind)} of ${each.model}, version ${each.version}.`);
}
