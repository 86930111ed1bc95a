// node theorem.mjs < SETTINGS: attention and convolution for each of the settings, as JSON.

import { readFileSync } from "node:fs";
import { attend, convolve } from "../../../src/attnconv/report/page/theorem.js";

const found = JSON.parse(readFileSync(0, "utf8")).map(({ image, height, width, centers, weights, alpha, padded }) => ({
  attention: [...attend(Float32Array.from(image), height, width, centers, weights, alpha, padded)],
  convolution: [...convolve(Float32Array.from(image), height, width, centers, weights)],
}));
process.stdout.write(JSON.stringify(found));
