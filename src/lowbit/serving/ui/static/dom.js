// Elements out of data, and a page that changes only where the data did.
// Strings go in as text and attribute values, never as markup: names and reasons come from people.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "path", "rect", "line", "circle", "g", "title", "desc"]);

/** An element. Attributes that are null, undefined or false are left out, true stands alone; children are nodes, strings, lists of them. */
export function h(tag, given = {}, ...inside) {
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...inside.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A button that does `what` (see app.js: actions) with these facts. */
export function button(text, what, facts = {}, kind = "") {
  const data = Object.fromEntries(Object.entries(facts).map(([name, value]) => [`data-${name}`, value]));
  return h("button", { type: "button", class: kind || null, "data-do": what, ...data }, text);
}

/** Makes `old` look like `made` with as few changes as it takes: focus, scrolling and opened details stay as they are. */
export function morph(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName || key(old) !== key(made)) {
    old.replaceWith(made);
  } else if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
  } else {
    attributes(old, made);
    children(old, made);
  }
}

function key(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null;
}

function attributes(old, made) {
  for (const { name } of [...old.attributes]) {
    const opened = name === "open" && old.nodeName === "DETAILS"; // that is the reader's
    if (!made.hasAttribute(name) && !opened) old.removeAttribute(name);
  }
  for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
}

function children(old, made) {
  const wanted = new Set([...made.childNodes].map(key));
  // What is gone goes first: an element that is moved loses the focus, one that moves up by itself keeps it.
  for (const node of [...old.childNodes]) if (key(node) && !wanted.has(key(node))) node.remove();
  const keyed = new Map([...old.childNodes].filter(key).map((node) => [key(node), node]));
  let at = old.firstChild;
  for (const child of [...made.childNodes]) {
    const known = key(child) ? keyed.get(key(child)) : at && !key(at) && at.nodeName === child.nodeName ? at : null;
    if (!known) {
      old.insertBefore(child, at);
    } else {
      if (known === at) at = at.nextSibling;
      else old.insertBefore(known, at);
      morph(known, child);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}
