// What the reader may change of a network and its image, in the address and as `forward` takes it.

import { meanPlace } from "./contours.js";
import { headsIn, layersOf, look } from "./heads.js";
import { forward } from "./network.js";

export const MODES = ["on", "off", "3x3"];
const LETTERS = { o: "off", t: "3x3" }; // in the address: a letter for each head, "." for on

export function readModes(text, run) {
  let place = 0;
  return Array.from({ length: layersOf(run) }, (_, layer) =>
    Array.from({ length: headsIn(run, layer) }, () => LETTERS[text[place++]] ?? "on"),
  );
}

export const writeModes = (modes) => {
  const text = modes.flat().map((mode) => Object.keys(LETTERS).find((letter) => LETTERS[letter] === mode) ?? ".");
  return text.every((letter) => letter === ".") ? "" : text.join("");
};

export const readHidden = (text, { grid: [height, width] }) =>
  new Set(
    text
      .split(".")
      .filter(Boolean)
      .map(Number)
      .filter((patch) => patch < height * width),
  );

/** What `forward` takes: "off", or the shift of a tap. */
export const switches = (modes, taps) =>
  modes.map((layer, index) =>
    layer.map((mode, head) => (mode === "on" ? undefined : mode === "off" ? "off" : taps[index][head])),
  );

/** The nearest tap of a 3 x 3 kernel of every head: to its center, or to where its map's mean lies in the middle. */
export function tapsOf(run, image) {
  const [height, width] = run.grid;
  const [row, column] = [Math.floor(height / 2), Math.floor(width / 2)];
  const nearest = (value) => Math.min(Math.max(Math.round(value), -1), 1);
  return Array.from({ length: layersOf(run) }, (_, layer) => {
    const { maps, gaussians } = look(run, layer, run.epochs, image);
    if (gaussians) return gaussians.map(({ center }) => center.map(nearest));
    return maps(row * width + column).map((map) => {
      const [i, j] = meanPlace(map, width);
      return [nearest(i - row || 0), nearest(j - column || 0)];
    });
  });
}

/** An image whose hidden patches have the mean color of the data. */
export function hide(pixels, hidden, { image: [channels, , imageWidth], patch, grid: [, width], mean }) {
  const result = Float32Array.from(pixels);
  for (const place of hidden) {
    const [top, left] = [Math.floor(place / width) * patch, (place % width) * patch];
    for (let i = top; i < top + patch; i++) {
      for (let j = left; j < left + patch; j++) {
        for (let c = 0; c < channels; c++) result[(i * imageWidth + j) * channels + c] = 255 * mean[c];
      }
    }
  }
  return result;
}

/** The class with the largest share. */
export const best = (shares) => shares.indexOf(Math.max(...shares));

let counts = 0; // of clicks: a newer count ends the one before

/** Count right predictions over the images of the page, with the heads as they are, without freezing the page. */
export async function countRight(page, now, say) {
  const { run, modes } = now;
  const set = page.imagesOf(run);
  const { heads, network } = page.state.values;
  const count = (counts += 1);
  let [right, asTrained] = [0, 0];
  for (let index = 0; index < set.labels.length; index++) {
    const image = { pixels: set.one(index), key: `${run.data_hash} ${index}` };
    const taps = modes.some((layer) => layer.includes("3x3")) ? tapsOf(run, image) : [];
    const of = (heads) => best([...forward(run, image.pixels, heads).logits]) === set.labels[index];
    right += of(switches(modes, taps));
    asTrained += of();
    await new Promise((resolve) => setTimeout(resolve));
    const { heads: headsNow, network: networkNow } = page.state.values;
    if (headsNow !== heads || networkNow !== network || counts !== count) return;
    if (index % 10 === 9) say(`${index + 1} of ${set.labels.length} images ...`);
  }
  say(`${right} of ${set.labels.length} images are right with these heads; as trained, ${asTrained} are.`);
}
