// The paper's Theorem 1 on one gray image: heads with Gaussian scores, next to the convolution of their nearest taps.
//
// As attnconv.analysis.conv_to_attention, in float32: scores are -alpha |shift - center|^2, which rows and columns
// share. Axes: N heads, H W rows and columns of the image; centers are [row, column], in pixels.

/** Three times three weights, by name. */
export const KERNELS = {
  edges: [-1, -1, -1, -1, 8, -1, -1, -1, -1],
  blur: [1, 2, 1, 2, 4, 2, 1, 2, 1].map((weight) => weight / 16),
  relief: [-2, -1, 0, -1, 1, 1, 0, 1, 2],
  sideways: [1, 0, -1, 2, 0, -2, 1, 0, -1],
};

/** The shifts of a 3 x 3 kernel, row by row. */
export const TAPS = [-1, 0, 1].flatMap((row) => [-1, 0, 1].map((column) => [row, column]));

/** The tap that a head becomes as alpha grows: the nearest pixel. */
export const tapOf = (center) => center.map((value) => Math.sign(value) * Math.round(Math.abs(value)));

/** How far from the query the taps reach, in pixels: the padding of the convolution. */
export const reachOf = (centers) => Math.max(1, ...centers.flatMap(tapOf).map(Math.abs));

/** Luminance of an image of C channels, 0..1. */
export function luminance(pixels, [channels, height, width]) {
  const weights = channels === 3 ? [0.299, 0.587, 0.114] : [1];
  return Float32Array.from({ length: height * width }, (_, pixel) =>
    weights.reduce((sum, weight, c) => sum + (weight * pixels[pixel * channels + c]) / 255, 0),
  );
}

/** Probabilities of the keys of one axis for each query, (queries, keys); keys begin `padding` before the first query. */
function axisProbs(size, padding, center, alpha) {
  const keys = size + 2 * padding;
  const probs = new Float32Array(size * keys);
  for (let query = 0; query < size; query++) {
    const row = probs.subarray(query * keys, (query + 1) * keys);
    // The largest score is subtracted, so that a head outside of the map still looks at its nearest pixel.
    const scores = Float32Array.from(row, (_, key) => -alpha * (key - padding - query - center) ** 2);
    const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (let key = 0; key < keys; key++) sum += row[key] = Math.exp(scores[key] - largest);
    for (let key = 0; key < keys; key++) row[key] /= sum;
  }
  return probs;
}

/**
 * Attention of N heads, their averages weighted and summed: (H, W).
 * @param padded whether the keys are the image with a border of zeros, as a convolution has, or the image alone
 */
export function attend(image, height, width, centers, weights, alpha, padded) {
  const padding = padded ? reachOf(centers) : 0;
  const columnKeys = width + 2 * padding;
  const result = new Float32Array(height * width);
  centers.forEach(([centerRow, centerColumn], head) => {
    const rows = axisProbs(height, padding, centerRow, alpha);
    const columns = axisProbs(width, padding, centerColumn, alpha);
    const byRow = new Float32Array(height * width); // of each query row, for each column of the image
    for (let i = 0; i < height; i++) {
      for (let k = 0; k < height; k++) {
        const share = rows[i * (height + 2 * padding) + k + padding];
        if (share) for (let j = 0; j < width; j++) byRow[i * width + j] += share * image[k * width + j];
      }
    }
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        let sum = 0;
        for (let k = 0; k < width; k++) sum += columns[j * columnKeys + k + padding] * byRow[i * width + k];
        result[i * width + j] += weights[head] * sum;
      }
    }
  });
  return result;
}

/** The convolution with a weight at each head's nearest tap and zeros around the image: (H, W). */
export function convolve(image, height, width, centers, weights) {
  const result = new Float32Array(height * width);
  centers.map(tapOf).forEach(([row, column], head) => {
    for (let i = Math.max(0, -row); i < height - Math.max(0, row); i++) {
      for (let j = Math.max(0, -column); j < width - Math.max(0, column); j++) {
        result[i * width + j] += weights[head] * image[(i + row) * width + j + column];
      }
    }
  });
  return result;
}

/** Largest absolute difference of two images: anywhere, and at pixels whose taps are all inside. */
export function differences(a, b, height, width, reach) {
  const found = { all: 0, inside: 0 };
  a.forEach((value, pixel) => {
    const [i, j] = [Math.floor(pixel / width), pixel % width];
    const difference = Math.abs(value - b[pixel]);
    found.all = Math.max(found.all, difference);
    const inside = i >= reach && j >= reach && i < height - reach && j < width - reach;
    if (inside) found.inside = Math.max(found.inside, difference);
  });
  return found;
}
