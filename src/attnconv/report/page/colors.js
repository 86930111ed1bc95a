// Colors of models and heads, which attnconv.report.colors gives to every figure, and a scale for maps.

const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const given = { heads: [], models: {} };

/** Take the colors that come with the page's data. */
export const setColors = (colors) => Object.assign(given, colors);

/** The color of a head; where there are more heads than colors they come again, with dashes (`headDash`). */
export const headColor = (head) => given.heads[head % given.heads.length];
export const headDash = (head) => (head < given.heads.length ? undefined : "0.25 0.15");

/** Color and shape of a model's marks, the same in every chart. */
export function modelStyle(model) {
  const [color, shape] = given.models[model];
  return { color, shape };
}

const polygon = (corners, turn = 0, radii = [1.15]) =>
  `M${Array.from({ length: corners }, (_, index) => {
    const [angle, radius] = [2 * Math.PI * (index / corners + turn) - Math.PI / 2, radii[index % radii.length]];
    return `${(radius * Math.cos(angle)).toFixed(3)} ${(radius * Math.sin(angle)).toFixed(3)}`;
  }).join("L")}Z`;
const PLUS = "M-.35-1.1H.35V-.35H1.1V.35H.35V1.1H-.35V.35H-1.1V-.35H-.35Z";

/** Outlines of radius 1 by the names of matplotlib's markers, which the figures use. */
export const SHAPES = {
  o: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
  s: "M-.9-.9H.9V.9H-.9Z",
  "^": polygon(3),
  v: polygon(3, 0.5),
  "<": polygon(3, 0.75),
  ">": polygon(3, 0.25),
  D: polygon(4),
  d: "M0-1.3L.8 0L0 1.3L-.8 0Z",
  p: polygon(5),
  h: polygon(6),
  "*": polygon(10, 0, [1.4, 0.6]),
  P: PLUS,
  X: "M0-.5L.6-1.1L1.1-.6L.5 0L1.1.6L.6 1.1L0 .5L-.6 1.1L-1.1.6L-.5 0L-1.1-.6L-.6-1.1Z",
};

const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/** Red, green and blue of a share of 0..1. */
export function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const index = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [from, to] = [channels(VIRIDIS[index]), channels(VIRIDIS[index + 1])];
  return from.map((value, channel) => Math.round(value + (place - index) * (to[channel] - value)));
}
