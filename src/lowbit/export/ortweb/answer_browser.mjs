// Runs in a browser that lowbit has started: the page's own model, asked over loopback. One request and one answer are a JSON header's
// length, the header, and the arrays' bytes one after the other.

import { fromBytes, load } from "./page/model.mjs";

async function packed(outputs) {
  const entries = Object.entries(outputs);
  const header = entries.map(([name, { shape, dtype, values }]) => ({ name, shape, dtype, bytes: values.byteLength }));
  const text = new TextEncoder().encode(JSON.stringify({ arrays: header }));
  return new Blob([new Uint32Array([text.length]), text, ...entries.map(([, { values }]) => values)]);
}

function unpacked(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const { arrays } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const feeds = {};
  for (const { name, shape, dtype, bytes } of arrays) {
    feeds[name] = { values: fromBytes(buffer.slice(at, at + bytes), dtype), shape, dtype };
    at += bytes;
  }
  return feeds;
}

const failed = (error) => new Blob([JSON.stringify({ error: String(error.message ?? error) })]);

try {
  const model = await load(new URL("page/", location));
  await fetch("ready", { method: "POST" });
  for (;;) {
    const request = await fetch("next");
    if (request.status !== 200) {
      if (request.status === 204) continue;
      break;
    }
    const body = await model.run(unpacked(await request.arrayBuffer())).then(packed);
    await fetch("answer", { method: "POST", body });
  }
} catch (error) {
  await fetch("failed", { method: "POST", body: failed(error) });
}
