// Colors that are told apart with any color vision, and a scale for maps.

// Paul Tol's muted scheme, in an order in which neighbors differ in lightness.
const HEADS = ["#cc6677", "#88ccee", "#ddcc77", "#44aa99", "#aa4499", "#999933", "#6699cc", "#ee8866", "#bbbbbb"];
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

/** The color of a head; after nine they come again, with dashes (`headDash`). */
export const headColor = (head) => HEADS[head % HEADS.length];
export const headDash = (head) => (head < HEADS.length ? undefined : "0.25 0.15");

const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/** Red, green and blue of a share of 0..1. */
export function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const index = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [from, to] = [channels(VIRIDIS[index]), channels(VIRIDIS[index + 1])];
  return from.map((value, channel) => Math.round(value + (place - index) * (to[channel] - value)));
}

/** One color per model, everywhere: Okabe and Ito's, black and white left to the page. */
const MODELS = {
  conv3x3: "#0072b2",
  sa_quadratic: "#d55e00",
  sa_learned: "#009e73",
  sa_learned_content: "#cc79a7",
  resnet10: "#7f7f7f",
};
const OTHERS = ["#e69f00", "#56b4e9", "#8c6d31", "#637939", "#843c39", "#7b4173"];

/** The color of a model by its name; `all` are the models that stand next to it. */
export function modelColor(model, all = []) {
  const others = all.filter((name) => !(name in MODELS));
  return MODELS[model] ?? OTHERS[Math.max(0, others.indexOf(model)) % OTHERS.length];
}
