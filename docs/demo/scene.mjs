// The Shapes world, drawn as vlm_lite.lessons.world.render draws it: 64 x 64 pixels, things in a grid of 4 x 4.

export const SHAPES = ["circle", "square", "triangle", "star", "cross", "heart"];
export const COLOURS = { red: [226, 52, 52], orange: [244, 142, 36], yellow: [246, 222, 62], green: [58, 176, 76],
  cyan: [70, 214, 226], blue: [62, 98, 236], purple: [152, 74, 206], pink: [248, 150, 196] };
export const SIZES = { small: 9, large: 14 };
const GRID = 4, CELL = 16, SIDE = 64, BACKGROUND = [20, 22, 30];
const DIGITS = [ // one of each from scikit-learn's load_digits, of those that no training image shows: 8 x 8, 0 to g
  "000a9000003fd50000dd1d0000g70g0000gb3f0000e7gc00009df600000da000",
  "0004b950005ggg5000bgg90004ggg40001eg900004fg6000009g800000075000",
  "005eb00000fgf00000a8g1000006e000000c9000001g3000008gcb00007gc700",
  "02dfa4000054df200000bg400000gc000000db0000008d000168ec0002ceb100",
  "0009d000003f6c0001c85e0006e0c7000e62g9500gddgf401fggc200033d4000",
  "00dggg8002gd841007g100000bfc500005ggg3000006g200003f900000be0000",
  "0004f100000d8100006c0000008a000000dcba0004gf8ba0017f43c00007fg80",
  "003cgg6000ab7gb000002ea005b89g3009gggg900149g600000be000004g5000",
  "007db10006ece90005e3a900008fe200001eg60000993f4000c51b80007gg910",
  "005f500000cbd80000b9ag00003fgg1000000e6000000d8000630e60002dgf30",
];

const INSIDE = {
  circle: (x, y) => x * x + y * y <= 1,
  square: (x, y) => Math.abs(x) <= 0.88 && Math.abs(y) <= 0.88,
  triangle: (x, y) => y <= 0.85 && 2 * Math.abs(x) <= (y + 1) * 1.08,
  cross: (x, y) => Math.abs(x) <= 0.34 || Math.abs(y) <= 0.34,
  heart: (x, y) => { const u = x * 1.16, v = 0.12 - y * 1.12; return (u * u + v * v - 1) ** 3 <= u * u * v * v * v; },
  star: (x, y) => [0, 1, 2, 3, 4].filter((k) => {
    const angle = Math.PI / 2 + k * 2 * Math.PI / 5;
    return x * Math.cos(angle) + y * Math.sin(angle) <= 0.34;
  }).length >= 4,
};

/** How much of each pixel a shape covers, 0 to 255, side x side. */
export function coverage(shape, side, samples = 4) {
  const at = (k) => (k + 0.5) / (side * samples) * 2 - 1;
  return Array.from({ length: side * side }, (_, i) => {
    let inside = 0;
    for (let a = 0; a < samples; a++)
      for (let b = 0; b < samples; b++)
        inside += INSIDE[shape](at((i % side) * samples + a), at(Math.floor(i / side) * samples + b));
    return Math.floor(inside * 255 / samples ** 2);
  });
}

export function handwriting(value) { // an 8 x 8 digit, doubled with linear interpolation: 16 x 16, 0 to 255
  const small = Array.from(DIGITS[value], (sign) => Math.floor(parseInt(sign, 17) * 255 / 16));
  const read = (row, col) => row < 0 || col < 0 || row > 7 || col > 7 ? 0 : small[8 * row + col];
  const mix = (k) => [k >> 1, (k >> 1) + (k % 2 ? 1 : -1)]; // the nearest, and its neighbour
  return Array.from({ length: 256 }, (_, i) => {
    const [row, beside] = mix(i >> 4), [col, next] = mix(i & 15);
    return (9 * read(row, col) + 3 * (read(beside, col) + read(row, next)) + read(beside, next)) >> 4;
  });
}

/** items [{shape, colour, size, row, col, value}], shape "digit" for a digit -> ImageData of 64 x 64. */
export function render(items, seed = 1) {
  let state = seed;
  const random = (n) => { // mulberry32: a seed gives the same pixels everywhere
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor(((t ^ (t >>> 14)) >>> 0) / 4294967296 * n);
  };
  const noise = Array.from({ length: SIDE * SIDE * 3 }, () => random(19) - 9);
  const image = noise.map((value, i) => BACKGROUND[i % 3] + value);
  for (const item of items) {
    const digit = item.shape === "digit";
    const alpha = digit ? handwriting(item.value) : coverage(item.shape, SIZES[item.size]);
    const side = Math.sqrt(alpha.length);
    const colour = (digit ? [235, 235, 228] : COLOURS[item.colour]).map((value) => value + random(29) - 14);
    const top = item.row * CELL + random(CELL - side + 1), left = item.col * CELL + random(CELL - side + 1);
    alpha.forEach((a, k) => {
      const start = ((top + Math.floor(k / side)) * SIDE + left + k % side) * 3;
      for (let c = 0; c < 3; c++) {
        const over = colour[c] + Math.floor(noise[start + c] / 2);
        image[start + c] = Math.floor((image[start + c] * (255 - a) + over * a) / 255);
      }
    });
  }
  const data = new ImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i++) data.data.set([...image.slice(3 * i, 3 * i + 3), 255], 4 * i);
  return data;
}

/** One to four things at random, in cells of their own. */
export function randomScene() {
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  const cells = new Set();
  while (cells.size < 2 + Math.floor(Math.random() * 2.99)) cells.add(Math.floor(Math.random() * GRID * GRID));
  return [...cells].map((cell, k) => {
    const place = { row: Math.floor(cell / GRID), col: cell % GRID };
    return k === 0 && Math.random() < 0.3 ? { shape: "digit", value: Math.floor(Math.random() * 10), ...place }
      : { shape: pick(SHAPES), colour: pick(Object.keys(COLOURS)), size: pick(Object.keys(SIZES)), ...place };
  });
}

export const name = (item) => item.shape === "digit" ? `handwritten ${item.value}` : `${item.size} ${item.colour} ${item.shape}`;
