// node arithmetic.mjs PAGE [IMAGES]: what the modules of the page compute for every run in it, as JSON.
//
// For every run: maps[layer][query][head][key] on the first image, and logits[image]. With IMAGES, a number: only the
// logits of this number of images.

import { readFileSync } from "node:fs";
import { unpack, unpackAll } from "../../../src/attnconv/report/page/arrays.js";
import { epochsOf, layersOf, look, shownBy } from "../../../src/attnconv/report/page/heads.js";
import { forward, isLive } from "../../../src/attnconv/report/page/network.js";

const [, text] = /<script type="application\/json" id="data">(.*?)<\/script>/s.exec(
  readFileSync(process.argv[2], "utf8"),
);
const data = JSON.parse(text);
const limit = process.argv[3];
const found = [];
for (const packed of data.runs) {
  const run = await unpackAll(packed);
  const { shape, values } = await unpack(data.images[run.data_hash].pixels);
  const size = values.length / shape[0];
  const images = Array.from({ length: shape[0] }, (_, index) => values.subarray(index * size, (index + 1) * size));
  const layers = shownBy(run) && limit === undefined ? layersOf(run) : 0;
  const queries = Array.from({ length: run.grid[0] * run.grid[1] }, (_, query) => query);
  const maps = Array.from({ length: layers }, (_, layer) => {
    const { maps: of } = look(run, layer, epochsOf(run).at(-1), { pixels: images[0], key: "first" });
    return queries.map((query) => of(query).map((map) => [...map]));
  });
  const logits = isLive(run) ? images.slice(0, limit).map((pixels) => [...forward(run, pixels).logits]) : null;
  found.push({ run: run.run, epochs: epochsOf(run), shown: shownBy(run) ?? null, maps, logits });
}
process.stdout.write(JSON.stringify(found));
