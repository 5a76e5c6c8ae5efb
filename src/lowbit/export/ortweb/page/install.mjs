// After npm install: the three files of onnxruntime-web that the page loads, beside it.

import { copyFileSync, existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";

const FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
const from = [join("node_modules", "onnxruntime-web", "dist"), join("..", "onnxruntime-web", "dist")].find((place) => existsSync(place));
if (!from) {
  console.error("onnxruntime-web is not in node_modules: run npm install.");
  process.exit(1);
}
mkdirSync("ort", { recursive: true });
for (const file of FILES) copyFileSync(join(from, file), join("ort", file));
