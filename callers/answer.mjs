// node callers/answer.mjs IMAGE.png QUESTION...: the answers, one a line. VLM_LITE_MODEL names what `vlm-lite export` wrote.
import { readFile } from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";
import * as ort from "onnxruntime-node";
import { PNG } from "pngjs";
import { loadVLM } from "../docs/demo/vlm.mjs";

const folder = process.env.VLM_LITE_MODEL ?? "exported";
const read = async (name) => new Uint8Array(await readFile(path.join(folder, name))).buffer;
let vlm;

/** The answer to a question about a PNG of the model's size. */
export async function answer(imagePath, question) {
  vlm ??= await loadVLM(ort, read);
  const found = await vlm.answer(PNG.sync.read(await readFile(imagePath)), question);
  if (found.unknown.length) console.error(`note: words the model does not know: ${found.unknown.join(", ")}`);
  return found.text;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [image, ...questions] = process.argv.slice(2);
  try {
    for (const question of questions) console.log(await answer(image, question));
  } catch (error) {
    console.error(`answer: ${error.message}`);
    process.exitCode = 2;
  }
}
