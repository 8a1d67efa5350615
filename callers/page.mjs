// node callers/page.mjs FOLDER: opens docs/demo in a real headless Chromium, uses it by keyboard and mouse as a reader would, and
// prints what the page said, as JSON; screenshots go into FOLDER. CHROMIUM names a browser; else @sparticuz/chromium is used.
import { createServer } from "node:http";
import { mkdir, readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";

const site = path.join(path.dirname(fileURLToPath(import.meta.url)), "../docs/demo");
const TYPES = { ".html": "text/html", ".css": "text/css", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };
let damaged = false; // one byte of language.onnx changed on its way
const server = createServer(async (request, response) => {
  const name = path.normalize(decodeURIComponent(request.url === "/" ? "/index.html" : request.url));
  try {
    const data = await readFile(path.join(site, name));
    if (damaged && name.endsWith("language.onnx")) data[5000] ^= 1;
    response.writeHead(200, { "content-type": TYPES[path.extname(name)] ?? "application/octet-stream" }).end(data);
  } catch {
    response.writeHead(404).end();
  }
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));

const folder = process.argv[2];
await mkdir(folder, { recursive: true });
const { default: chromium } = process.env.CHROMIUM ? { default: null } : await import("@sparticuz/chromium");
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? await chromium.executablePath(), headless: "shell",
  args: [...(chromium?.args ?? []), "--no-sandbox"] });
try {
  const page = await browser.newPage(), problems = [];
  page.on("pageerror", (error) => problems.push(error.message));
  const text = (selector) => page.$eval(selector, (element) => element.textContent);
  const asked = (what) => page.waitForFunction((what) => document.getElementById("result").dataset.asked === what, { timeout: 120000 }, what);
  const found = { problems };
  const open = async (width, scheme) => {
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
  };
  await open(1100, "light");
  await asked("what colour is the star?");
  found.first = [await text("#answer"), await text("#because")];
  found.wide = await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
  await page.screenshot({ path: path.join(folder, "wide-light.png"), fullPage: true });
  await page.focus("#grid button");
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"]) await page.keyboard.press(key);
  found.cell = await page.evaluate(() => document.activeElement.ariaLabel);
  await page.keyboard.press("Enter"); // removes the heart
  await page.focus("#question");
  await page.keyboard.down("Control"); await page.keyboard.press("a"); await page.keyboard.up("Control");
  await page.keyboard.type("is there a heart?");
  await page.keyboard.press("Enter");
  await asked("is there a heart?");
  found.removed = await text("#answer");
  await page.click("#hide");
  await page.waitForFunction(() => document.getElementById("because").textContent.startsWith("A guess"));
  found.hidden = [await text("#because"), await text("#described")];
  await page.screenshot({ path: path.join(folder, "hidden.png"), fullPage: true });
  await page.click("#swap");
  await page.waitForFunction(() => document.getElementById("because").textContent.includes("with the image"));
  await page.$eval("#question", (input) => { input.value = "what colour is the banana?"; });
  await page.click("#ask");
  await asked("what colour is the banana?");
  found.unknown = await text("#status");
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await page.screenshot({ path: path.join(folder, "wide-dark.png"), fullPage: true });
  await open(380, "dark");
  await asked("what colour is the star?");
  await page.screenshot({ path: path.join(folder, "narrow-dark.png"), fullPage: true });
  found.narrow = await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  await page.screenshot({ path: path.join(folder, "narrow-light.png"), fullPage: true });
  found.unnamed = await page.$$eval("button, input", (all) => all.filter((one) => !(one.ariaLabel || one.labels?.length || one.textContent.trim())).length);
  damaged = true;
  await open(1100, "light");
  await page.waitForFunction(() => document.getElementById("status").className === "wrong", { timeout: 60000 });
  found.damaged = await text("#status");
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
  server.close();
}
