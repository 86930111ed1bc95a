// The paper's network (attnconv.models.backbone) run forward in the browser, on one image.
//
// Axes: C channels of the image, H W rows and columns of the map, Q K query and key pixels, N heads, D width.

import { layerAttention, linear, mixerKind, withPrefix } from "./attention.js";
import { gelu } from "./encodings.js";

const EPSILON = 1e-12; // of the layer norms

/** Whether this page has all that it takes to run a network: its weights, and only layers that it knows. */
export const isLive = (run) => Boolean(run.tensors?.["head.weight"]) && mixerKind(run.mixer) !== undefined;

/** Pixels (0..255, rows x columns x C) as the stem sees them: normalized patches, (Q, p*p*C). */
export function patches(pixels, { image, patch, mean, std }) {
  const [channels, height, width] = image;
  const [rows, columns] = [height / patch, width / patch];
  const x = new Float32Array(pixels.length);
  let place = 0;
  for (let position = 0; position < rows * columns; position++) {
    const [row, column] = [Math.floor(position / columns) * patch, (position % columns) * patch];
    for (let i = row; i < row + patch; i++) {
      for (let j = column; j < column + patch; j++) {
        for (let c = 0; c < channels; c++) {
          x[place++] = (pixels[(i * width + j) * channels + c] / 255 - mean[c]) / std[c];
        }
      }
    }
  }
  return x;
}

function layerNorm(x, { values: weight }, { values: bias }) {
  const width = weight.length;
  for (let start = 0; start < x.length; start += width) {
    const row = x.subarray(start, start + width);
    const mean = row.reduce((sum, value) => sum + value, 0) / width;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width;
    const scale = 1 / Math.sqrt(variance + EPSILON);
    for (let d = 0; d < width; d++) row[d] = (row[d] - mean) * scale * weight[d] + bias[d];
  }
  return x;
}

const add = (x, y) => {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
};

/** What every head averages: (Q, N*D), from probabilities per query. A head that is off averages nothing. */
function averages(x, width, attend) {
  const positions = x.length / width;
  let result;
  for (let query = 0; query < positions; query++) {
    const maps = attend(query);
    result ??= new Float32Array(positions * maps.length * width);
    maps.forEach((map, head) => {
      const start = (query * maps.length + head) * width;
      for (let key = 0; key < positions; key++) {
        const weight = map[key];
        if (weight === 0) continue;
        for (let d = 0, k = key * width; d < width; d++) result[start + d] += weight * x[k + d];
      }
    });
  }
  return result;
}

/** All of a query's attention on the pixel at one shift; none where that is outside, as a convolution pads with 0. */
export function tapMap(query, [rowShift, columnShift], height, width) {
  const map = new Float64Array(height * width);
  const [row, column] = [Math.floor(query / width) + rowShift, (query % width) + columnShift];
  if (row >= 0 && row < height && column >= 0 && column < width) map[row * width + column] = 1;
  return map;
}

/**
 * Run the network.
 * @param run a live run with unpacked tensors
 * @param pixels the image, 0..255, rows x columns x channels
 * @param heads heads[layer]?.[head]: "off", or a shift [row, column] to look at and nowhere else; else as trained
 * @returns {{logits: Float32Array, inputs: Float32Array[]}} and what goes into every layer, (Q, D)
 */
export function forward(run, pixels, heads = []) {
  const [height, width] = run.grid;
  const { tensors } = run;
  let x = linear(patches(pixels, run), tensors["stem.weight"], tensors["stem.bias"]);
  const inputs = [];
  for (let layer = 0; layer < run.layers; layer++) {
    inputs.push(x);
    const parameters = withPrefix(tensors, `layers.${layer}.`);
    const attend = changed(attentionOf(run, layer, x), heads[layer], height, width);
    x = applyLayer(parameters, x, attend);
  }
  const channels = x.length / (height * width);
  const mean = Float32Array.from({ length: channels }, (_, d) => {
    let sum = 0;
    for (let place = d; place < x.length; place += channels) sum += x[place];
    return sum / (height * width);
  });
  return { logits: linear(mean, tensors["head.weight"], tensors["head.bias"]), inputs };
}

/** A function query -> N maps, for one layer of a run; x is what the layer sees, where that matters. */
export function attentionOf(run, layer, x) {
  return layerAttention(run.mixer, withPrefix(run.tensors, `layers.${layer}.mixer.`), ...run.grid, x);
}

function changed(attend, modes, height, width) {
  if (!modes?.some(Boolean)) return attend;
  return (query) =>
    attend(query).map((map, head) => {
      if (modes[head] === "off") return new Float64Array(map.length);
      return modes[head] ? tapMap(query, modes[head], height, width) : map;
    });
}

function applyLayer(parameters, x, attend) {
  const of = (input, name) => linear(input, parameters[`${name}.weight`], parameters[`${name}.bias`]);
  const norm = (input, name) => layerNorm(input, parameters[`${name}.weight`], parameters[`${name}.bias`]);
  const width = parameters["projection.weight"].shape[0];
  const mixed = of(of(averages(x, width, attend), "mixer.value"), "projection");
  const middle = norm(add(mixed, x), "mixer_norm");
  const hidden = of(middle, "expand").map(gelu);
  return norm(add(of(hidden, "contract"), middle), "feed_forward_norm");
}

/** Softmax of logits. */
export function probabilities(logits) {
  const largest = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}
