// Where a head looks, drawn: its mean shift, and lines around shares of its attention.

const TINY = 1e-12; // stands for a probability that underflowed to 0, so that it has a logarithm

/** The largest t such that the pixels with probability of at least t hold `mass` of it. */
export function massThreshold(map, mass) {
  const descending = Float64Array.from(map).toSorted().toReversed();
  const wanted = mass * descending.reduce((sum, value) => sum + value, 0);
  let held = 0;
  for (const value of descending) if ((held += value) >= wanted) return value;
  return descending.at(-1);
}

/** Mean place (row, column) of a map, in positions; NaN where a head looks at nothing (relu attention may). */
export function meanPlace(map, width) {
  let [row, column, sum] = [0, 0, 0];
  map.forEach((value, key) => {
    row += value * Math.floor(key / width);
    column += value * (key % width);
    sum += value;
  });
  return [row / sum, column / sum];
}

/** Line segments [[row, column], [row, column]] around `mass` of a map: marching squares on its logarithm. */
export function contour(map, height, width, mass) {
  const level = Math.log(Math.max(massThreshold(map, mass), TINY)) - 1e-9;
  // Outside of the map there is nothing, so that lines close at its border.
  const at = (i, j) =>
    i < 0 || j < 0 || i >= height || j >= width ? level - 1 : Math.log(Math.max(map[i * width + j], TINY));
  const segments = [];
  for (let i = -1; i < height; i++) {
    for (let j = -1; j < width; j++) {
      const corners = [
        [i, j],
        [i, j + 1],
        [i + 1, j + 1],
        [i + 1, j],
      ];
      const points = corners.flatMap((from, side) => crossing(from, corners[(side + 1) % 4], at, level));
      for (let k = 0; k + 1 < points.length; k += 2) segments.push([points[k], points[k + 1]]);
    }
  }
  return segments;
}

function crossing(from, to, at, level) {
  const [a, b] = [at(...from) - level, at(...to) - level];
  if (a >= 0 === b >= 0) return [];
  const share = a / (a - b);
  return [[from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])]];
}

/** The ellipse around `mass` of a Gaussian head with inverse covariance S S^T: half axes and angle in degrees. */
export function gaussianEllipse(spreads, mass) {
  const reach = Math.sqrt(-2 * Math.log(1 - mass));
  if (spreads.length === 1) return { radii: [reach / Math.abs(spreads[0]), reach / Math.abs(spreads[0])], angle: 0 };
  const [a, b, c, d] = spreads;
  const [p, q, r] = [a * a + b * b, a * c + b * d, c * c + d * d]; // [[p, q], [q, r]]
  const middle = (p + r) / 2;
  const apart = Math.hypot((p - r) / 2, q);
  const along = (Math.atan2(2 * q, p - r) / 2) * (180 / Math.PI); // of the larger eigenvalue, from the row axis
  return {
    radii: [middle + apart, middle - apart].map((value) => reach / Math.sqrt(Math.max(value, TINY))),
    angle: along,
  };
}
