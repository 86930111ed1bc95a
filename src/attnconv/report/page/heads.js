// Where the heads of a run look, from whatever there is of it: parameters per epoch, weights, or maps of the center.

import { mixerKind, positionMaps, withPrefix } from "./attention.js";
import { isGaussian, scoreTable } from "./encodings.js";
import { attentionOf, forward, isLive } from "./network.js";

const cut = ({ shape, values }, ...indices) => {
  const inner = shape.slice(indices.length);
  const size = inner.reduce((a, b) => a * b, 1);
  const start = indices.reduce((place, index, axis) => place * shape[axis] + index, 0) * size;
  return { shape: inner, values: values.subarray(start, start + size) };
};

/** How a run's attention can be shown: from "position", from "content", only its "center", or undefined. */
export function shownBy(run) {
  const kind = mixerKind(run.mixer);
  if (kind === "position" && (run.history || hasEncoding(run))) return "position";
  if (kind === "content" && isLive(run)) return "content";
  return run.maps ? "center" : undefined;
}

const hasEncoding = ({ tensors }) =>
  Object.keys(tensors ?? {}).some((name) => name.startsWith("layers.0.mixer.encoding."));

/** The epochs whose heads can be shown: with recorded centers all of them, unless maps of the end are shown. */
export const epochsOf = (run) => (shownBy(run) === "position" && run.history?.epochs) || [run.epochs];

/** The number of layers whose attention can be shown. */
export const layersOf = (run) => run.history?.centers.shape[1] ?? run.maps?.shape[0] ?? run.layers ?? 0;

/** The number of heads of a layer, of which a pruned network has fewer in some layers: the rest is NaN. */
export function headsIn(run, layer) {
  if (!run.history) return run.heads;
  return cut(run.history.centers, 0, layer).values.filter((value) => !Number.isNaN(value)).length / 2;
}

/** Parameters of position-only attention in a layer after an epoch. */
export function encodingOf(run, layer, epoch) {
  if (!run.history) return withPrefix(run.tensors, `layers.${layer}.mixer.encoding.`);
  const at = run.history.epochs.indexOf(epoch);
  const heads = headsIn(run, layer);
  const of = (recorded) => {
    const { shape, values } = cut(recorded, at, layer);
    return { shape: [heads, ...shape.slice(1)], values: values.subarray(0, (values.length / shape[0]) * heads) };
  };
  return { centers: of(run.history.centers), spreads: of(run.history.spreads) };
}

const inputs = new WeakMap(); // run -> {key of the image, what every layer sees}

function layerInputs(run, image) {
  if (inputs.get(run)?.key !== image.key) inputs.set(run, { key: image.key, of: forward(run, image.pixels).inputs });
  return inputs.get(run).of;
}

/**
 * What one layer of a run attends to.
 * @param run unpacked
 * @param image {pixels, key}, used only by attention to content
 * @returns {{maps: function(number): Float64Array[], gaussians: ?{center: number[], spreads: number[]}[]}}
 *   maps of a query pixel, one per head, and the Gaussians that they come from
 */
export function look(run, layer, epoch, image) {
  const [height, width] = run.grid;
  const kind = shownBy(run);
  if (kind === "content") return { maps: attentionOf(run, layer, layerInputs(run, image)[layer]) };
  if (kind === "center") {
    const { shape } = run.maps;
    const all = Array.from({ length: shape[1] }, (_, head) => cut(run.maps, layer, head).values);
    return { maps: () => all.filter((map) => !Number.isNaN(map[0])) };
  }
  const parameters = encodingOf(run, layer, epoch);
  const table = scoreTable(run.mixer.encoding, parameters, height, width);
  const maps = (query) => positionMaps(table, query, height, width, run.mixer.normalizer);
  // With another normalizer the maps are not Gaussian.
  if (!isGaussian(run.mixer.encoding) || (run.mixer.normalizer ?? "softmax") !== "softmax") return { maps };
  const { centers, spreads } = parameters;
  const gaussians = Array.from({ length: centers.shape[0] }, (_, head) => ({
    center: [...cut(centers, head).values],
    spreads: [...cut(spreads, head).values],
  }));
  return { maps, gaussians };
}
