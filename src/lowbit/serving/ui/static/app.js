// The page's life: which view is open, asking for what it shows once a second while somebody looks, and what buttons do.

import { actions } from "./actions.js";
import { Away, Refused, ask, key } from "./api.js";
import { dialog } from "./dialog.js";
import { h, morph } from "./dom.js";
import { news } from "./news.js";
import { clock } from "./words.js";
import * as audit from "./views/audit.js";
import * as cost from "./views/cost.js";
import * as models from "./views/models.js";
import * as now from "./views/now.js";
import * as reviews from "./views/reviews.js";
import * as rollouts from "./views/rollouts.js";
import * as traffic from "./views/traffic.js";

const VIEWS = { now, models, rollouts, traffic, reviews, cost, audit };
const EVERY_MS = 1000;
const RARELY_MS = 15000; // what the server has not, and what no view shows
const SAID_MS = 9000;
const REVIEWS = "v1/reviews?state=open";
const SLOW = /^v1\/(monitoring|cost|registry\/audit)/; // they change seldom, or are dear to make
const SLOW_MS = 5000;
const NEEDS = [
  [/^v1\/(registry|rollouts)/, "registry", "This server has no registry: it serves folders."],
  [/^v1\//, "record", "Nothing is recorded: the server was started with --no-record."],
  [/^v1\/(monitoring|reviews)/, "state", "Nothing is kept of the traffic: the server was started without --state FOLDER."],
];

const facts = { keys: false, version: "", registry: true, record: true, state: true };
const known = new Map(); // path -> {value, refused, at}
let route = { view: "now", arg: "" };
let awaySince = null;
let timer = null;
let round = 0;
let heard = -Infinity; // when the server answered last

function routed() {
  if (!location.hash.startsWith("#/") && location.hash) return; // the skip link's
  const [view, ...rest] = location.hash.slice(2).split("/").map(decodeURIComponent);
  const changed = view !== route.view || rest.join("/") !== route.arg;
  route = { view: view in VIEWS ? view : "now", arg: rest.join("/") };
  if (changed) document.getElementById("main").focus({ preventScroll: true });
  if (changed) scrollTo(0, 0);
  draw();
  soon(0);
}

/** What views draw from: the last answers by path; `writes` says whether buttons make sense. */
const context = {
  get: (path) => known.get(path)?.value ?? null,
  refused: (path) => known.get(path)?.refused ?? null,
  get writes() {
    return facts.keys && key.get() !== "";
  },
  get arg() {
    return route.arg;
  },
};

// Asking ------------------------------------------------------------------------------------------------------------------

function soon(wait) {
  clearTimeout(timer);
  if (document.visibilityState === "visible") timer = setTimeout(turn, wait);
}

async function turn() {
  const mine = ++round;
  if (facts.keys && !key.get()) return void draw();
  try {
    if (awaySince !== null) await meet(); // it may have been started anew, with other options
    // A view's second wave needs the first: which rollouts run.
    await all(VIEWS[route.view].sources(context));
    await all([...VIEWS[route.view].sources(context), REVIEWS]);
    if (performance.now() - heard > 0.9 * EVERY_MS) await ask("v2/health/live"); // the dot that says live is visible, too
    heard = performance.now();
    back();
  } catch (error) {
    if (!(error instanceof Away)) console.error(error);
    awaySince ??= Date.now() / 1000;
  }
  if (mine !== round) return;
  news(context, say);
  draw();
  soon(facts.keys && !key.get() ? RARELY_MS : EVERY_MS);
}

async function all(paths) {
  const due = [...new Set(paths)].filter((path) => !fresh(path));
  const failed = (await Promise.all(due.map(fetched))).find(Boolean);
  if (failed) throw failed;
}

function fresh(path) {
  const have = known.get(path);
  const seen = VIEWS[route.view].sources(context).includes(path);
  const lasts = have?.refused || !seen ? RARELY_MS : SLOW.test(path) ? SLOW_MS : EVERY_MS;
  return have !== undefined && performance.now() - have.at < 0.9 * lasts;
}

/** Asks for a page and remembers the answer, unless the server said that it has none; gives the error where nobody answered. */
async function fetched(path) {
  const lacking = NEEDS.find(([paths, what]) => paths.test(path) && !facts[what]);
  if (lacking) return void known.set(path, { value: null, refused: lacking[2], at: performance.now() });
  try {
    known.set(path, { value: await ask(path), refused: null, at: performance.now() });
    heard = performance.now();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) locked("The server did not take this key.");
    else if (error instanceof Refused && error.status < 500)
      known.set(path, { value: null, refused: error.message, at: performance.now() });
    else return error instanceof Refused ? new Away(error.message) : error;
  }
  return undefined;
}

function back() {
  if (awaySince !== null) say("The server answers again.");
  awaySince = null;
}

/** Forgets what was read, so that it is asked for again at once. */
function again() {
  for (const have of known.values()) have.at = -Infinity;
  soon(0);
}

// The key -----------------------------------------------------------------------------------------------------------------

let asking = null;

function locked(problem) {
  key.drop();
  known.clear();
  unlock(problem);
}

function unlock(problem = "") {
  asking ??= dialog({
    title: "The server asks for a key",
    text: [problem, "It stays in this tab and is gone when you close it."].filter(Boolean),
    fields: [{ name: "key", label: "API key", kind: "password", required: true }],
    submit: "Go on",
    work: async (values) => {
      if (/[^\x20-\x7e]/.test(values.key)) throw new Error("A key has only letters, digits and signs of ASCII.");
      key.set(values.key);
      try {
        await ask("v2");
      } catch (error) {
        key.drop();
        throw error.status === 401 ? new Error("The server did not take this key.") : error;
      }
    },
  }).finally(() => {
    asking = null;
    again();
    draw();
  });
}

// Drawing -----------------------------------------------------------------------------------------------------------------

function draw() {
  const main = document.getElementById("main");
  const view = VIEWS[route.view];
  const inside = main.contains(document.activeElement);
  morph(main, h("main", { id: "main", tabindex: "-1" }, page(view)));
  if (inside && document.activeElement === document.body) main.focus({ preventScroll: true }); // what had the focus is gone
  document.title = `${view.TITLE} · lowbit`;
  document.body.classList.toggle("stale", awaySince !== null);
  morph(document.getElementById("nav"), h("ul", { id: "nav" }, Object.entries(VIEWS).map(tab)));
  morph(document.getElementById("banner"), h("div", { id: "banner" }, banner()));
  morph(document.getElementById("link"), h("span", { id: "link" }, link()));
  morph(document.getElementById("foot"), h("p", { id: "foot" }, foot()));
}

function page(view) {
  if (facts.keys && !key.get()) {
    return [
      h("h1", {}, "Locked"),
      h("p", { class: "headline" }, "The server shows what it knows to those who have a key."),
      h("button", { type: "button", "data-do": "unlock" }, "Enter the key"),
    ];
  }
  try {
    if (view.sources(context).some((path) => known.has(path))) return view.draw(context);
  } catch (error) {
    console.error(error);
    return [
      h("h1", {}, view.TITLE),
      h(
        "p",
        { class: "headline" },
        `This page cannot draw what the server says: ${error.message}. Are both of the same version? Load it again.`,
      ),
    ];
  }
  return [
    h("h1", {}, view.TITLE),
    h("p", { class: "headline" }, awaySince === null ? "Asking the server." : "There is nothing to show yet."),
  ];
}

function tab([name, view]) {
  const open = name === "reviews" ? (context.get(REVIEWS)?.reviews ?? []).length : 0;
  const here = name === route.view ? "page" : null;
  return h(
    "li",
    { "data-key": name },
    h(
      "a",
      { href: `#/${name}`, "aria-current": here },
      view.TITLE,
      open > 0 && h("span", { class: "count" }, `${open}`, h("span", { class: "hidden" }, " open")),
    ),
  );
}

function link() {
  const state = awaySince === null ? ["loaded", "live"] : ["away", "away"];
  return [h("span", { class: `dot v-${state[0]}` }), state[1]];
}

function foot() {
  const leave = facts.keys && key.get() !== "" && h("button", { type: "button", class: "quiet", "data-do": "lock" }, "Forget the key");
  return [h("span", {}, `lowbit ${facts.version}. Every number here is also at /v1 as JSON.`), leave];
}

function banner() {
  const away =
    awaySince !== null &&
    h(
      "div",
      { class: "notice v-away", "data-key": "away" },
      h("p", {}, `The server has not answered since ${clock(awaySince)}. What you see is from before; this page tries again every second.`),
    );
  const reads =
    !facts.keys &&
    h(
      "div",
      { class: "notice v-keep", "data-key": "reads" },
      h(
        "p",
        {},
        "Read only: this server has no API keys, so anybody who reaches it could press a button. Start it with ",
        h("code", {}, "--api-key-file FILE"),
        " and the buttons appear.",
      ),
    );
  return [away, reads];
}

/** Says something to eyes and to screen readers; what was said a moment ago stays beside it. */
export function say(text) {
  const line = h("p", {}, text);
  document.getElementById("said").append(line);
  setTimeout(() => line.remove(), SAID_MS);
}

// Beginning ---------------------------------------------------------------------------------------------------------------

const own = {
  unlock: () => unlock(),
  lock: () => {
    sessionStorage.clear();
    locked("");
  },
};

document.addEventListener("click", async (event) => {
  const pressed = event.target.closest("[data-do]");
  if (!pressed || document.querySelector("dialog[open]")) return;
  const what = own[pressed.dataset.do] ?? actions[pressed.dataset.do];
  const done = await what({ ...pressed.dataset }, context);
  if (typeof done === "string") say(done);
  if (done) again();
});
document.addEventListener("visibilitychange", () => soon(0));
addEventListener("hashchange", routed);

/** Asks what this server has. */
async function meet() {
  try {
    Object.assign(facts, await ask("ui/server.json"));
  } catch (error) {
    throw error instanceof Refused ? new Away(error.message) : error;
  }
}

async function begin() {
  try {
    await meet();
  } catch {
    awaySince ??= Date.now() / 1000;
    draw();
    return void setTimeout(begin, EVERY_MS);
  }
  document.getElementById("where").textContent = location.host;
  routed();
  if (facts.keys && !key.get()) unlock();
}

begin();
