// Pixels as pictures: images of a data set, and maps, as PNG in data addresses that an SVG can hold.

import { html } from "./dom.js";
import { viridis } from "./colors.js";

function picture(width, height, colorOf) {
  const canvas = html("canvas", { width, height });
  const context = canvas.getContext("2d");
  const content = context.createImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    content.data.set([...colorOf(pixel), 255], 4 * pixel);
  }
  context.putImageData(content, 0, 0);
  return canvas.toDataURL();
}

/** An image of rows x columns x channels, 0..255. */
export function photograph(pixels, [channels, height, width]) {
  return picture(width, height, (pixel) => [0, 1, 2].map((c) => pixels[pixel * channels + Math.min(c, channels - 1)]));
}

/** A map of numbers, its largest in yellow. */
export function heatmap(map, height, width) {
  const largest = map.reduce((a, b) => Math.max(a, b), 1e-30);
  return picture(width, height, (pixel) => viridis(map[pixel] / largest));
}

/** Numbers in gray, from `low` in black to `high` in white. */
export function grayscale(values, height, width, low, high) {
  return picture(width, height, (pixel) => Array(3).fill((255 * (values[pixel] - low)) / (high - low || 1)));
}

/** A picture that the reader brought, scaled to cover an image of that shape: 0..255, rows x columns x channels. */
export async function pixelsOf(file, [channels, height, width]) {
  const bitmap = await createImageBitmap(file);
  const side = Math.min(bitmap.width / width, bitmap.height / height);
  const [cutWidth, cutHeight] = [side * width, side * height];
  const canvas = html("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(
    bitmap,
    (bitmap.width - cutWidth) / 2,
    (bitmap.height - cutHeight) / 2,
    cutWidth,
    cutHeight,
    0,
    0,
    width,
    height,
  );
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: height * width * channels }, (_, place) => {
    const start = 4 * Math.floor(place / channels);
    return channels === 1
      ? Math.round(0.299 * data[start] + 0.587 * data[start + 1] + 0.114 * data[start + 2])
      : data[start + (place % channels)];
  });
}
