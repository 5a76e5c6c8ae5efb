// The server's other pages. The key stays in this tab's session storage and goes along as a header; nothing is sent elsewhere.

const BASE = new URL("../", document.baseURI); // the page may stand behind a proxy's prefix
const KEY = "lowbit.key";
const PATIENCE_MS = 8000;

/** Nobody answered. */
export class Away extends Error {}

/** The server said no; `message` is its own. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  drop: () => sessionStorage.removeItem(KEY),
};

/** What a page answers: GET without a body, POST with one. Throws Away or Refused. */
export async function ask(path, body) {
  const response = await answered(path, body);
  let document = null;
  try {
    document = await response.json();
  } catch {
    if (response.ok) throw new Away("The answer broke off.");
  }
  if (!response.ok) throw new Refused(response.status, document?.error ?? `The server answered ${response.status}.`);
  return document;
}

async function answered(path, body) {
  const headers = key.get() ? { "X-API-Key": key.get() } : {};
  const own = { cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer" };
  const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(new URL(path, BASE), { ...own, ...sent, headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch (error) {
    throw new Away(error.name === "TimeoutError" ? `No answer within ${PATIENCE_MS / 1000} s.` : "The connection failed.");
  }
}

/** A path with parts that may hold anything. */
export function inPath(...parts) {
  return parts.map(encodeURIComponent).join("/");
}
