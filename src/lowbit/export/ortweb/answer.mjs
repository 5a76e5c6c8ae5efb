// Runs in Node: `node answer.mjs FOLDER`. It loads what the page loads; see lowbit.export.worker for what it speaks.

import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const { fromBytes, run } = await import(pathToFileURL(join(folder, "model.mjs")));
const ort = await import(pathToFileURL(join(folder, "ort", "ort.wasm.min.mjs")));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = pathToFileURL(join(folder, "ort/")).href;
ort.env.logLevel = "error";
const session = await ort.InferenceSession.create(readFileSync(join(folder, "model.onnx")), { executionProviders: ["wasm"] });
console.log("ready");

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  try {
    const feeds = {};
    for (const [name, { file, dtype, shape }] of Object.entries(request.feeds)) {
      const bytes = readFileSync(file);
      feeds[name] = { values: fromBytes(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength), dtype), shape, dtype };
    }
    const outputs = {};
    for (const [index, [name, { values, shape, dtype }]] of Object.entries(await run(ort, session, feeds)).entries()) {
      const file = join(request.out, `out${index}`);
      writeFileSync(file, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      outputs[name] = { file, dtype, shape };
    }
    console.log(JSON.stringify({ outputs }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message ?? error) }));
  }
}
