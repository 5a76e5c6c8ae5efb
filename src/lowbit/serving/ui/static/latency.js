// The bins in which a rollout counts latencies (see lowbit.rollout.evidence): each is 2 % wider than the one before.

import { overlaid } from "./charts.js";
import { digits } from "./words.js";

const LOWEST_S = 1e-4;
const PER_DECADE = 117;
export const EDGES_S = Array.from({ length: Math.floor(5.5 * PER_DECADE) + 1 }, (_, step) => LOWEST_S * 10 ** (step / PER_DECADE));

/** The time that this share of the counted ones does not exceed, in seconds; null without any. */
export function quantile(counts, share) {
  const total = (counts ?? []).reduce((sum, n) => sum + n, 0);
  if (!total) return null;
  let below = 0;
  for (let bin = 0; bin < counts.length; bin += 1) {
    if (counts[bin] && below + counts[bin] >= share * total) {
      const low = bin ? EDGES_S[bin - 1] : 0;
      const high = EDGES_S[Math.min(bin, EDGES_S.length - 1)];
      return low + ((high - low) * (share * total - below)) / counts[bin];
    }
    below += counts[bin];
  }
  return EDGES_S.at(-1);
}

/** Both arms' latencies over the bins that either of them uses, with the ends of the axis in milliseconds. */
export function spread(now, before, title) {
  const used = [now, before].flatMap((counts) => (counts ?? []).flatMap((n, bin) => (n ? [bin] : [])));
  if (!used.length) return null;
  const [first, last] = [Math.max(Math.min(...used) - 2, 0), Math.min(Math.max(...used) + 3, EDGES_S.length)];
  const cut = (counts) => (counts?.length ? counts.slice(first, last) : null);
  const ms = (bin) => `${digits(1000 * EDGES_S[Math.min(Math.max(bin, 0), EDGES_S.length - 1)])} ms`;
  const ends = [ms(first - 1), ms(Math.round((first + last) / 2) - 1), ms(last - 1)];
  return {
    ends,
    drawing: overlaid({ now: cut(now), before: cut(before), title, description: `From ${ends[0]} to ${ends[2]}, square-root scale.` }),
  };
}
