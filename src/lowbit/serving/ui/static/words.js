// Numbers and times as people read them, in the same form as the report.

export const NONE = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);
const minus = (text) => text.replace("-", "−");

/** Three significant digits without an exponent, thousands separated. */
export function digits(value) {
  if (!known(value)) return NONE;
  if (value === 0) return "0";
  const places = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return minus(value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places }));
}

export const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : NONE);

/** 0.0123 -> "1.23 %"; whole per cents stay whole. */
export function share(value) {
  if (!known(value)) return NONE;
  const hundred = value * 100;
  const places = Math.abs(hundred) >= 10 ? 1 : 2;
  return `${minus(Number(hundred.toFixed(places)).toLocaleString("en-US"))} %`;
}

export const milliseconds = (value) => (known(value) ? (value >= 1000 ? `${digits(value / 1000)} s` : `${digits(value)} ms`) : NONE);

export function size(bytes) {
  if (!known(bytes)) return NONE;
  const [unit, by] = bytes < 1e6 ? ["kB", 1e3] : bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${digits(bytes / by)} ${unit}`;
}

export const joules = (value) => (known(value) ? (value >= 1 ? `${digits(value)} J` : `${digits(value * 1e3)} mJ`) : NONE);

export const money = (value) =>
  known(value) ? `$${value >= 1 ? value.toLocaleString("en-US", { maximumFractionDigits: 2 }) : digits(value)}` : NONE;

/** Seconds -> "42 s", "3 min 05 s", "2 h 10 min", "3 days". */
export function span(seconds) {
  if (!known(seconds)) return NONE;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} days`;
}

/** A moment (seconds since 1970 or ISO text) in seconds; null where there is none. */
export function moment(value) {
  if (known(value)) return value;
  const parsed = typeof value === "string" ? Date.parse(value) / 1000 : NaN;
  return known(parsed) ? parsed : null;
}

export function ago(value, now = Date.now() / 1000) {
  const at = moment(value);
  if (at === null) return NONE;
  return now - at < 2 ? "just now" : `${span(now - at)} ago`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

/** The reader's own clock; with the day where it is not today. */
export function clock(value, now = new Date()) {
  const at = moment(value);
  if (at === null) return NONE;
  const date = new Date(at * 1000);
  const time = CLOCK.format(date);
  return date.toDateString() === now.toDateString() ? time : `${DAY.format(date)}, ${time}`;
}

/** Who, and why where somebody said why. */
export const said = (by, why) => (why ? `${by}: ${why}` : `${by}`);

export const short = (digest) => (digest ? String(digest).slice(0, 12) : NONE);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Words of a program as people write them: "rolled_back" -> "rolled back". */
export const spaced = (word) => String(word ?? "").replaceAll("_", " ");
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
