// A VLM that `vlm-lite export` wrote, run by onnxruntime: onnxruntime-node or onnxruntime-web, given as `ort`.

const WORD = /[!-/:-@[-`{-~\p{P}]|[^\s!-/:-@[-`{-~\p{P}]+/gu;

/** read: file name -> Promise of an ArrayBuffer. Throws where a file is not the one that the manifest describes. */
export async function loadVLM(ort, read, options = {}) {
  const text = async (name) => new TextDecoder().decode(await read(name));
  const manifest = JSON.parse(await text("manifest.json"));
  const checked = async (name) => {
    const data = await read(name), said = manifest.files[name];
    const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    const hex = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== said.sha256)
      throw new Error(`${name} is not the file that manifest.json describes (${data.byteLength === said.bytes ? "its hash differs" : `${data.byteLength} bytes, expected ${said.bytes}`}). Export again: vlm-lite export shapes-vlm FOLDER`);
    return data;
  };
  const words = new TextDecoder().decode(await checked("vocabulary.txt")).trimEnd().split("\n");
  const idOf = new Map(words.map((word, id) => [word, id]));
  const open = async (name) => ort.InferenceSession.create(new Uint8Array(await checked(name)), options);
  const vision = await open("vision.onnx"), language = await open("language.onnx");
  const { image_size: size, mean, std, past: shape, eos } = manifest;

  function tokenize(text) { // -> {ids, unknown}: words in lower case, punctuation apart; "A." to "D." are words
    const found = text.split(/([A-D]\.)/).flatMap((part) => idOf.has(part) ? [part] : part.toLowerCase().match(WORD) ?? []);
    return { ids: found.map((word) => idOf.get(word) ?? manifest.unknown), unknown: found.filter((word) => !idOf.has(word)) };
  }
  const blind = new ort.Tensor("float32", new Float32Array(0), [1, 0, shape[3] * shape[5]]);

  async function see({ data, width, height }) { // RGBA bytes -> prefix (1, Q, D)
    if (width !== size || height !== size) throw new Error(`the image is ${width} x ${height}; expected ${size} x ${size} pixels.`);
    const pixels = new Float32Array(3 * size * size);
    for (let i = 0; i < size * size; i++)
      for (let c = 0; c < 3; c++) pixels[c * size * size + i] = (data[4 * i + c] / 255 - mean[c]) / std[c];
    return (await vision.run({ pixels: new ort.Tensor("float32", pixels, [1, 3, size, size]) })).prefix;
  }

  /** image {data: RGBA, width, height}, or null: blind -> {text, unknown, first: {word: probability} of its first word}. */
  async function answer(image, question) {
    let { ids, unknown } = tokenize(manifest.prompt.replace("{question}", () => question));
    let prefix = image ? await see(image) : blind, first = null;
    if (prefix.dims[1] + ids.length + manifest.max_new_tokens > manifest.context)
      throw new Error(`the question has ${ids.length} words, too many for this model. Shorten it.`);
    let past = new ort.Tensor("float32", new Float32Array(0), shape);
    const said = [];
    for (let step = 0; step < manifest.max_new_tokens; step++) {
      const input_ids = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
      const { logits, present } = await language.run({ prefix, input_ids, past });
      const best = logits.data.reduce((top, value, id, all) => value > all[top] ? id : top, 0);
      if (!first) {
        const powers = Array.from(logits.data, (value) => Math.exp(value - logits.data[best]));
        const sum = powers.reduce((a, b) => a + b);
        first = Object.fromEntries(words.map((word, id) => [word, powers[id] / sum]));
      }
      if (best === eos) break;
      said.push(words[best]);
      ids = [best]; prefix = blind; past = present;
    }
    return { text: said.join(" ").replace(/ ([.,?!])/g, "$1"), unknown, first };
  }
  return { answer, manifest };
}
