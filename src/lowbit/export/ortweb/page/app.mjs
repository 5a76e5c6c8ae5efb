// The page: takes an image, shows what the model makes of it.

import { load, ranked } from "./model.mjs";
import { prepared } from "./steps.mjs";

const $ = (id) => document.getElementById(id);
const say = (text, kind = "") => {
  $("state").textContent = text;
  $("state").className = kind;
};
const size = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)}\u00a0kB` : `${(bytes / 1e6).toFixed(1)}\u00a0MB`);

let model = null;

async function start() {
  try {
    model = await load();
  } catch (error) {
    say(error.message, "bad");
    return;
  }
  const { facts } = model;
  document.title = facts.title;
  $("title").textContent = facts.title;
  $("facts").textContent = `${facts.words} · ${size(model.size)}`;
  if (facts.lacking) {
    say(facts.lacking, "soft");
    return;
  }
  $("drop").hidden = false;
  say("Ready.");
  document.documentElement.dataset.ready = "yes";
}

/** The file's pixels as they are stored: not turned by EXIF, no colours converted. */
async function pixelsOf(file) {
  const plain = { colorSpaceConversion: "none", imageOrientation: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, plain).catch(() => {
    throw new Error(`${file.name || "The file"} is no image that this browser reads.`);
  });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

async function classify(file) {
  if (model === null || !file) return;
  delete document.documentElement.dataset.answered;
  say("Looking.");
  try {
    const { facts } = model;
    const input = prepared(await pixelsOf(file), facts.steps);
    const feeds = { [facts.input]: { ...input, dtype: facts.dtype } };
    const started = performance.now();
    const answer = (await model.run(feeds))[facts.output];
    show(file, ranked(answer.values.subarray(0, answer.shape.at(-1)), facts.labels), performance.now() - started);
  } catch (error) {
    say(error.message, "bad");
  }
}

function show(file, classes, milliseconds) {
  const shown = $("shown");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  shown.alt = file.name || "the image";
  $("answers").replaceChildren(
    ...classes.map(({ index, name, share }) => {
      const item = document.createElement("li");
      const percent = `${(100 * share).toFixed(1)} %`;
      const label = Object.assign(document.createElement("span"), { className: "name", textContent: name });
      const number = Object.assign(document.createElement("span"), { className: "number", textContent: percent });
      const bar = Object.assign(document.createElement("span"), { className: "bar" });
      bar.style.setProperty("--share", share);
      item.dataset.index = index;
      item.append(label, number, bar);
      return item;
    }),
  );
  $("result").hidden = false;
  say(`${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms on this device, one thread.`);
  document.documentElement.dataset.answered = "yes";
}

$("file").addEventListener("change", (event) => classify(event.target.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") classify(event.dataTransfer.files[0]);
  });
}
start();
