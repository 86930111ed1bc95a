// Colors of models and heads, which attnconv.report.colors gives to every figure, and a scale for maps.

const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const given = { heads: [], models: {} };

/** Take the colors that come with the page's data. */
export const setColors = (colors) => Object.assign(given, colors);

/** The color of a head; where there are more heads than colors they come again, with dashes (`headDash`). */
export const headColor = (head) => given.heads[head % given.heads.length];
export const headDash = (head) => (head < given.heads.length ? undefined : "0.25 0.15");

/** The color of a model, the same in every chart. */
export const modelColor = (model) => given.models[model];

const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/** Red, green and blue of a share of 0..1. */
export function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const index = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [from, to] = [channels(VIRIDIS[index]), channels(VIRIDIS[index + 1])];
  return from.map((value, channel) => Math.round(value + (place - index) * (to[channel] - value)));
}
