// The page: a scene that the reader draws, a question, and what the model says of it with the image and without.

import { COLOURS, SHAPES, SIZES, coverage, name, randomScene, render } from "./scene.mjs";
import { loadVLM } from "./vlm.mjs";

const EXAMPLES = ["what colour is the star?", "what is the small shape?", "how many shapes are there?",
  "is there a heart?", "is the star above the heart?", "which digit is written?"];
const $ = (id) => document.getElementById(id);
let scene = [{ shape: "star", colour: "yellow", size: "large", row: 0, col: 1 }, { shape: "heart", colour: "pink", size: "small", row: 2, col: 2 },
  { shape: "digit", value: 7, row: 3, col: 0 }];
let hidden = false, vlm = null, seed = 1, latest = 0, queue = Promise.resolve();

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function icon(shape) { // drawn from the coverage that the world itself uses
  const side = 20, alpha = coverage(shape, side);
  const squares = alpha.map((a, i) => a ? `<rect x="${i % side}" y="${Math.floor(i / side)}" width="1.05" height="1.05" opacity="${a / 255}"/>` : "").join("");
  return `<svg viewBox="0 0 ${side} ${side}" aria-hidden="true">${squares}</svg>`;
}

function choices(id, values, chosen, look) {
  for (const value of values) {
    const input = make("input", { type: "radio", name: id, value, checked: value === chosen });
    input.setAttribute("aria-label", value);
    const span = make("span", { title: value });
    look(span, value);
    $(id).append(make("label", {}, input, span));
  }
}
const chosen = (id) => document.querySelector(`input[name=${id}]:checked`).value;

choices("shapes", [...SHAPES, "digit"], "circle", (span, value) => value === "digit" ? span.append("7") : span.innerHTML = icon(value));
choices("colours", Object.keys(COLOURS), "red", (span, value) => { span.className = "dot"; span.style.setProperty("--dot", `rgb(${COLOURS[value]})`); });
choices("sizes", Object.keys(SIZES), "large", (span, value) => span.append(value));

for (let row = 0; row < 4; row++) {
  const line = make("div");
  line.setAttribute("role", "row");
  for (let col = 0; col < 4; col++) {
    const button = make("button", { type: "button", tabIndex: row + col ? -1 : 0, onclick: () => place(row, col) });
    button.setAttribute("role", "gridcell");
    button.onkeydown = (event) => {
      const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [];
      const next = down === undefined ? null : cells()[4 * (row + down) + col + right];
      if (down === undefined) return;
      event.preventDefault();
      if (!next || col + right < 0 || col + right > 3) return;
      cells().forEach((cell) => { cell.tabIndex = -1; });
      next.tabIndex = 0;
      next.focus();
    };
    line.append(button);
  }
  $("grid").append(line);
}
function cells() { return [...$("grid").querySelectorAll("button")]; }

function place(row, col) {
  if (hidden) return say("The image is hidden. Show it to draw.");
  const here = scene.findIndex((item) => item.row === row && item.col === col);
  if (here >= 0) scene.splice(here, 1);
  else if (scene.length === 4) return say("Four things at most: remove one first.");
  else if (chosen("shapes") !== "digit") scene.push({ shape: chosen("shapes"), colour: chosen("colours"), size: chosen("sizes"), row, col });
  else if (scene.some((item) => item.shape === "digit")) return say("One digit at most: remove the other first.");
  else scene.push({ shape: "digit", value: Math.floor(Math.random() * 10), row, col });
  draw();
  ask();
}

function draw() {
  $("canvas").getContext("2d").putImageData(render(scene, seed), 0, 0);
  $("veil").hidden = !hidden;
  const at = (row, col) => scene.find((item) => item.row === row && item.col === col);
  cells().forEach((cell, k) => {
    const item = at(Math.floor(k / 4), k % 4);
    cell.setAttribute("aria-label", `row ${Math.floor(k / 4) + 1}, column ${k % 4 + 1}: ${hidden ? "hidden" : item ? name(item) : "empty"}`);
  });
  $("described").textContent = hidden ? "The model gets the question alone." : scene.length
    ? `In the image: ${scene.map(name).join(", ")}. Click a cell to draw or remove.` : "An empty image. Click a cell to draw.";
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "wrong" : "";
}
const percent = (p) => p > 0.995 ? "100%" : p >= 0.01 ? `${Math.round(100 * p)}%` : "<1%";

function ask() {
  const mine = ++latest;
  queue = queue.then(() => mine === latest && vlm && answer().catch((error) => say(error.message, true)));
}

async function answer() {
  const question = $("question").value.trim();
  if (!question) return say("Type a question first.");
  const image = hidden ? null : render(scene, seed);
  const seen = await vlm.answer(image, question), blind = image ? await vlm.answer(null, question) : seen;
  const highest = (word) => Math.max(seen.first[word], blind.first[word]);
  const likely = Object.keys(seen.first).sort((a, b) => highest(b) - highest(a)).slice(0, 5).filter((word) => highest(word) > 0.01);
  const words = likely.sort((a, b) => seen.first[b] - seen.first[a]), top = words[0];
  const unknown = [...new Set(seen.unknown)];
  say(unknown.length ? `Not among the words it knows, and read as “unknown”: ${unknown.join(", ")}.` : "", true);
  $("answer").textContent = seen.text || "(no answer)";
  $("because").textContent = image ? `“${top}”: ${percent(seen.first[top])} with the image, ${percent(blind.first[top])} without.`
    : `A guess from the question alone: “${top}” ${percent(seen.first[top])}.`;
  $("bars").replaceChildren(...words.map((word) => {
    const bar = make("div", { className: "bar" }), line = make("div", { className: "blind" }), track = make("div", { className: "track" }, bar, line);
    bar.style.width = `${100 * seen.first[word]}%`;
    line.style.left = `${100 * blind.first[word]}%`;
    track.setAttribute("aria-hidden", "true");
    return make("li", {}, make("span", { className: "word", textContent: word }), track,
      make("span", { className: "share" }, percent(seen.first[word]), make("span", { className: "hidden", textContent: `, without the image ${percent(blind.first[word])}` })));
  }));
  $("result").dataset.asked = question;
}

for (const text of EXAMPLES)
  $("examples").append(make("button", { type: "button", textContent: text, onclick: () => { $("question").value = text; ask(); } }));
$("form").onsubmit = (event) => { event.preventDefault(); ask(); };
$("clear").onclick = () => { scene = []; draw(); ask(); };
$("swap").onclick = () => { scene = randomScene(); seed += 1; hidden = false; show(); };
$("hide").onclick = () => { hidden = !hidden; show(); };
function show() {
  $("hide").classList.toggle("on", hidden);
  $("hide").textContent = hidden ? "Show the image" : "Hide the image";
  draw();
  ask();
}

draw();
$("ask").disabled = true;
try {
  const read = async (file) => {
    const found = await fetch(file);
    if (!found.ok) throw new Error(`${file} cannot be read (${found.status}). Build the page with: make demo`);
    return found.arrayBuffer();
  };
  const ort = await import("./ort/ort.wasm.min.mjs"), runtime = await read("ort/ort-wasm-simd-threaded.wasm.gz");
  const packed = new Uint8Array(runtime)[0] === 0x1f; // some hosts unpack a .gz on its way
  ort.env.wasm.wasmBinary = packed ? await new Response(new Blob([runtime]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer() : runtime;
  ort.env.wasm.numThreads = 1; // a static host sends no headers that threads would need
  vlm = await loadVLM(ort, (file) => read(`model/${file}`));
  $("ask").disabled = false;
  say("");
  ask();
} catch (error) {
  say(`The model could not be loaded: ${error.message}`, true);
}
