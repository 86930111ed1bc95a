// Attention probabilities of a query pixel or of all of them, as attnconv.mixers.positional and .content define them.
//
// Axes: N heads, H W rows and columns of the map, D width, Q K query and key pixels (row-major over H x W).

import { encodingKind, scoreTable, sinusoids } from "./encodings.js";

const SMALLEST_SUM = 0.1; // attnconv.mixers.base

/** Turn scores into weights that sum to 1, in place. */
const NORMALIZERS = {
  softmax(scores) {
    const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (let k = 0; k < scores.length; k++) sum += scores[k] = Math.exp(scores[k] - largest);
    for (let k = 0; k < scores.length; k++) scores[k] /= sum;
  },
  relu(scores) {
    let sum = 0;
    for (let k = 0; k < scores.length; k++) sum += scores[k] = Math.max(0, 1 + scores[k]);
    for (let k = 0; k < scores.length; k++) scores[k] /= Math.max(sum, SMALLEST_SUM);
  },
  sigmoid(scores) {
    for (let k = 0; k < scores.length; k++) {
      scores[k] = Math.min(scores[k], 0) - Math.log1p(Math.exp(-Math.abs(scores[k])));
    }
    NORMALIZERS.softmax(scores);
  },
};

/** Whether this page can compute a mixer's attention, and from what: "position", "content" or undefined. */
export function mixerKind(mixer) {
  if (!mixer || (mixer.encoding && !encodingKind(mixer.encoding))) return undefined;
  if (mixer.target === "PositionalAttention") return "position";
  if (mixer.target !== "ContentAttention" || mixer.pattern) return undefined;
  return !mixer.relative || mixer.relative.target in RELATIVE ? "content" : undefined;
}

/** Tensors whose names begin with a prefix, without it. */
export function withPrefix(tensors, prefix) {
  const chosen = Object.entries(tensors ?? {}).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(chosen.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}

/** Probabilities of one query pixel, N arrays of K, of position-only attention with a table of scores. */
export function positionMaps(table, query, height, width, normalizer = "softmax") {
  const [row, column] = [Math.floor(query / width), query % width];
  const [rows, columns] = [2 * height - 1, 2 * width - 1];
  return Array.from({ length: table.heads }, (_, head) => {
    const scores = new Float64Array(height * width);
    for (let i = 0; i < height; i++) {
      const start = (head * rows + i - row + height - 1) * columns - column + width - 1;
      for (let j = 0; j < width; j++) scores[i * width + j] = table.values[start + j];
    }
    NORMALIZERS[normalizer](scores);
    return scores;
  });
}

/** Row vectors or column vectors r(shift), D/2 each. */
const RELATIVE = {
  LearnedRelativeVectors: (parameters, _, axis) => {
    const { shape, values } = parameters[`${axis}_embeddings.weight`];
    const reach = (shape[0] - 1) / 2;
    return (shift) => values.subarray((shift + reach) * shape[1], (shift + reach + 1) * shape[1]);
  },
  SinusoidalRelativeVectors: (parameters, config, axis) => {
    const { shape, values } = parameters[`${axis}_projection.weight`];
    return (shift) => {
      const features = sinusoids(shift, shape[1], config.base ?? 10000);
      return Array.from({ length: shape[0] }, (_, unit) =>
        features.reduce((sum, feature, i) => sum + feature * values[unit * shape[1] + i], 0),
      );
    };
  },
};

/** y = x W^T + b of rows of x: (Q, I) -> (Q, O) Float32Array. */
export function linear(x, weight, bias) {
  const [outputs, inputs] = weight.shape;
  const rows = x.length / inputs;
  const result = new Float32Array(rows * outputs);
  for (let row = 0; row < rows; row++) {
    for (let output = 0; output < outputs; output++) {
      let sum = bias ? bias.values[output] : 0;
      for (let i = 0, a = row * inputs, b = output * inputs; i < inputs; i++) sum += x[a + i] * weight.values[b + i];
      result[row * outputs + output] = sum;
    }
  }
  return result;
}

/**
 * A function query -> N arrays of K probabilities, for one layer.
 * @param mixer its configuration, as in the run's config.yaml
 * @param parameters its tensors
 * @param x what the layer sees, (Q, D); position-only attention needs none
 */
export function layerAttention(mixer, parameters, height, width, x) {
  const encoding = mixer.encoding && withPrefix(parameters, "encoding.");
  const table = encoding && scoreTable(mixer.encoding, encoding, height, width);
  if (mixerKind(mixer) === "position") return (query) => positionMaps(table, query, height, width, mixer.normalizer);
  const content = contentScores(mixer, parameters, height, width, x);
  return (query) =>
    content(query).map((scores, head) => {
      if (table) addPositions(scores, table, head, query, height, width);
      NORMALIZERS[mixer.normalizer ?? "softmax"](scores);
      return scores;
    });
}

function addPositions(scores, table, head, query, height, width) {
  const [row, column] = [Math.floor(query / width), query % width];
  const [rows, columns] = [2 * height - 1, 2 * width - 1];
  for (let key = 0; key < scores.length; key++) {
    const [i, j] = [Math.floor(key / width), key % width];
    scores[key] += table.values[(head * rows + i - row + height - 1) * columns + j - column + width - 1];
  }
}

/** query -> N arrays of K scores: (query + u) . key + (query + v) . r, over sqrt(D). */
function contentScores(mixer, parameters, height, width, x) {
  const channels = parameters["value.weight"].shape[0];
  const heads = parameters["value.weight"].shape[1] / channels;
  const project = (name) =>
    parameters[`${name}.weight`] && linear(x, parameters[`${name}.weight`], parameters[`${name}.bias`]);
  const [queries, keys] = [project("query"), project("key")];
  const relative = mixer.relative && relativeVectors(mixer.relative, parameters, height, width);
  const question = (asks, bias, query, head) =>
    Float64Array.from(
      { length: channels },
      (_, d) =>
        ((asks && queries ? queries[(query * heads + head) * channels + d] : 0) +
          (bias ? bias.values[head * channels + d] : 0)) /
        Math.sqrt(channels),
    );
  const [u, v] = [parameters.key_bias, parameters.relative_bias];
  return (query) =>
    Array.from({ length: heads }, (_, head) => {
      const scores = new Float64Array(height * width);
      if (keys) {
        const what = question(mixer.content ?? true, u, query, head);
        for (let key = 0; key < scores.length; key++) {
          for (let d = 0, k = (key * heads + head) * channels; d < channels; d++) scores[key] += what[d] * keys[k + d];
        }
      }
      if (relative && ((mixer.query_relative ?? true) || v)) {
        addRelative(scores, question(mixer.query_relative ?? true, v, query, head), relative, query, height, width);
      }
      return scores;
    });
}

function relativeVectors(config, parameters, height, width) {
  const tensors = withPrefix(parameters, "relative.");
  return [
    ["row", height],
    ["column", width],
  ].map(([axis, size]) => {
    const vector = RELATIVE[config.target](tensors, config, axis);
    return Array.from({ length: 2 * size - 1 }, (_, index) => vector(index - size + 1));
  });
}

function addRelative(scores, where, [rowVectors, columnVectors], query, height, width) {
  const [row, column] = [Math.floor(query / width), query % width];
  const half = where.length / 2;
  const product = (vector, start) => vector.reduce((sum, value, d) => sum + value * where[start + d], 0);
  const ofRows = Array.from({ length: height }, (_, i) => product(rowVectors[i - row + height - 1], 0));
  const ofColumns = Array.from({ length: width }, (_, j) => product(columnVectors[j - column + width - 1], half));
  for (let key = 0; key < scores.length; key++) scores[key] += ofRows[Math.floor(key / width)] + ofColumns[key % width];
}
