// The model on onnxruntime-web: WebAssembly, one thread. Nothing leaves the device.

const TYPES = { float32: Float32Array, uint8: Uint8Array, int8: Int8Array, int32: Int32Array, int64: BigInt64Array };

/** Loads the runtime and the model: { run(feeds), facts }. Feeds and answers are { name: { values, shape, dtype } }. */
export async function load(base = new URL(".", import.meta.url)) {
  const facts = await (await get(new URL("model.json", base))).json();
  const ort = await import(new URL("ort/ort.wasm.min.mjs", base)).catch((error) => {
    throw new Error(`onnxruntime-web is not in the folder "ort". Run npm install in this page's folder. (${error.message})`);
  });
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("ort/", base).href;
  ort.env.logLevel = "error";
  const bytes = new Uint8Array(await (await get(new URL(facts.file, base))).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { facts, size: bytes.length, run: (feeds) => run(ort, session, feeds) };
}

async function get(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname.split("/").pop()} is not there (${answer.status}).`);
  return answer;
}

/** Answers one batch on a session. */
export async function run(ort, session, feeds) {
  const tensors = {};
  for (const [name, { values, shape, dtype }] of Object.entries(feeds)) tensors[name] = new ort.Tensor(dtype, values, shape);
  const found = await session.run(tensors);
  return Object.fromEntries(
    session.outputNames.map((name) => [name, { values: found[name].data, shape: [...found[name].dims], dtype: found[name].type }]),
  );
}

/** An array of a type out of raw little-endian bytes. */
export function fromBytes(buffer, dtype) {
  if (!(dtype in TYPES)) throw new Error(`Arrays of ${dtype} are not read here.`);
  return new TYPES[dtype](buffer);
}

/** Classes by score: [{ index, name, share }], the best first. Scores that are no probabilities become some. */
export function ranked(scores, labels, count = 5) {
  const values = Array.from(scores, Number);
  const sum = values.reduce((a, b) => a + b, 0);
  const are = Math.abs(sum - 1) < 1e-2 && values.every((value) => value >= 0);
  const most = Math.max(...values);
  const powers = are ? values : values.map((value) => Math.exp(value - most));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers
    .map((power, index) => ({ index, name: labels[index] ?? `class ${index}`, share: power / total }))
    .sort((a, b) => b.share - a.share)
    .slice(0, count);
}
