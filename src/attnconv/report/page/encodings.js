// Relative positional encodings (attnconv.mixers.encodings, attnconv.mixers.continuous_bias): the score of every shift.
//
// Every encoding gives a table of scores, N heads x (2H-1) row shifts x (2W-1) column shifts, in float64.
// Parameters have the names that they have in PyTorch: {name: {shape, values}}.

/** The error function, to 1.5e-7 (Abramowitz and Stegun 1964, formula 7.1.26). */
export function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

export const gelu = (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2));

/** Sines, then cosines, of a shift: wavelengths from 2 pi to base * 2 pi pixels. */
export function sinusoids(shift, features, base) {
  const half = Math.ceil(features / 2);
  const angles = Array.from({ length: half }, (_, index) => shift * base ** (-(2 * index) / features));
  return [...angles.map(Math.sin), ...angles.map(Math.cos)];
}

const dot = (a, aStart, b, bStart, length) => {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[aStart + i] * b[bStart + i];
  return sum;
};

/** A score function of one shift -> N scores for each axis, as additive encodings have them. */
const AXES = {
  LearnedEncoding: (parameters, _, axis) => {
    const table = parameters[`${axis}_embeddings.weight`];
    const projection = parameters[`${axis}_projection.weight`];
    const [heads, width] = projection.shape;
    const reach = (table.shape[0] - 1) / 2;
    return (shift) =>
      Array.from({ length: heads }, (_, head) =>
        dot(projection.values, head * width, table.values, (shift + reach) * width, width),
      );
  },
  SinusoidalEncoding: (parameters, config, axis) => {
    const projection = parameters[`${axis}_projection.weight`];
    const [heads, width] = projection.shape;
    return (shift) => {
      const features = sinusoids(shift, width, config.base ?? 10000);
      return Array.from({ length: heads }, (_, head) => dot(projection.values, head * width, features, 0, width));
    };
  },
  AxisDistance: (parameters, _, axis) => scoreFunction(parameters, `${axis}_function.`),
};

/** A small network: distance -> N scores. */
function scoreFunction(parameters, prefix) {
  const [weight, bias, contract] = ["expand.weight", "expand.bias", "contract.weight"].map(
    (name) => parameters[prefix + name],
  );
  const [heads, hidden] = contract.shape;
  return (distance) => {
    const compressed = Math.sign(distance) * Math.log1p(Math.abs(distance));
    const units = Array.from(bias.values, (offset, unit) => gelu(compressed * weight.values[unit] + offset));
    return Array.from({ length: heads }, (_, head) => dot(contract.values, head * hidden, units, 0, hidden));
  };
}

/** Score functions of (row shift, column shift) -> N scores. */
const WHOLE = {
  QuadraticEncoding:
    ({ centers, spreads }) =>
    (row, column) =>
      Array.from(spreads.values, (spread, head) => {
        const [r, c] = [row - centers.values[2 * head], column - centers.values[2 * head + 1]];
        return -0.5 * spread * spread * (r * r + c * c);
      }),
  GeneralizedQuadraticEncoding:
    ({ centers, spreads }) =>
    (row, column) =>
      Array.from({ length: centers.shape[0] }, (_, head) => {
        const [r, c] = [row - centers.values[2 * head], column - centers.values[2 * head + 1]];
        const [a, b, d, e] = spreads.values.slice(4 * head, 4 * head + 4);
        return -0.5 * ((r * a + c * d) ** 2 + (r * b + c * e) ** 2);
      }),
  RadialDistance: (parameters) => {
    const score = scoreFunction(parameters, "function.");
    return (row, column) => score(Math.hypot(row, column));
  },
};

/** The name of an encoding among those above; undefined for one that this page cannot compute. */
export function encodingKind({ target, kind = "axes" }) {
  const name = target === "distance_encoding" ? { axes: "AxisDistance", radial: "RadialDistance" }[kind] : target;
  return name in AXES || name in WHOLE ? name : undefined;
}

/** Whether the heads are Gaussians, which have centers and spreads. */
export const isGaussian = (config) => config?.target?.endsWith("QuadraticEncoding") ?? false;

/**
 * Scores of all shifts of an H x W map.
 * @returns {{heads: number, values: Float64Array}} values of N x (2H-1) x (2W-1), shifts from -(H-1) and -(W-1)
 */
export function scoreTable(config, parameters, height, width) {
  const name = encodingKind(config);
  let score = WHOLE[name]?.(parameters);
  if (!score) {
    const [ofRow, ofColumn] = ["row", "column"].map((axis) => AXES[name](parameters, config, axis));
    const columns = new Map();
    for (let column = 1 - width; column < width; column++) columns.set(column, ofColumn(column));
    score = (row, column) => ofRow(row).map((value, head) => value + columns.get(column)[head]);
  }
  const [rows, columns] = [2 * height - 1, 2 * width - 1];
  const heads = score(0, 0).length;
  const values = new Float64Array(heads * rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      score(row - height + 1, column - width + 1).forEach((value, head) => {
        values[(head * rows + row) * columns + column] = value;
      });
    }
  }
  return { heads, values };
}
