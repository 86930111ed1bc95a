// The two figures of a layer: rings around what its heads look at, over the image; and a map for each head.

import { headColor, headDash } from "./colors.js";
import { contour, gaussianEllipse, meanPlace } from "./contours.js";
import { svg } from "./dom.js";
import { percent } from "./format.js";
import { heatmap, photograph } from "./pictures.js";

export const MARGIN = 0.5; // around the image, in positions
const HALO = 0.04; // around lines on a photograph, in positions
// Share of the attention inside, width of the line in positions, its opacity.
const MASSES = [
  [0.9, 0.05, 0.75],
  [0.5, 0.11, 1],
];

/** Draw the rings of all heads; `shown` is what query.js shows. */
export function drawRings(picture, shown) {
  const { run, image, layer, height, width, row, column } = shown;
  picture.setAttribute("viewBox", `${-MARGIN} ${-MARGIN} ${width + 2 * MARGIN} ${height + 2 * MARGIN}`);
  picture.setAttribute(
    "aria-label",
    `Query pixel in row ${row + 1}, column ${column + 1}; arrow keys move it. ` +
      `Rings show where the heads of layer ${layer + 1} look.`,
  );
  const ground = { width, height, preserveAspectRatio: "none", "image-rendering": "pixelated", opacity: 0.8 };
  picture.replaceChildren(
    ...(image ? [svg("image", { href: photograph(image.pixels, run.image), ...ground })] : []),
    gridLines(height, width),
    ...shown
      .maps(shown.query)
      .map((map, head) => (shown.only && shown.only !== head + 1 ? "" : drawHead(shown, map, head))),
    square(row, column, "#fff", 0.16),
    square(row, column, "#000", 0.07),
  );
}

function drawHead(shown, map, head) {
  const { row, column, width } = shown;
  const center = shown.gaussians?.[head].center;
  const [y, x] = center ? [row + center[0], column + center[1]] : meanPlace(map, width);
  if (Number.isNaN(y)) return svg("g");
  const color = headColor(head);
  const lines = MASSES.map(([mass, stroke, opacity]) => {
    const around = (attributes) =>
      ring(shown, map, head, mass, { fill: "none", "stroke-linecap": "round", ...attributes });
    return [
      around({ stroke: "#000", "stroke-width": stroke + HALO, "stroke-opacity": opacity / 2 }),
      around({ stroke: color, "stroke-width": stroke, "stroke-opacity": opacity, "stroke-dasharray": headDash(head) }),
    ];
  });
  const dot = { cx: x + 0.5, cy: y + 0.5, r: 0.14, fill: color, stroke: "#000", "stroke-width": 0.04 };
  return svg("g", {}, lines, svg("circle", dot, svg("title", {}, `head ${head + 1}`)));
}

/** The line around a share of a head's attention: an ellipse of its Gaussian, or level lines of its map. */
function ring({ gaussians, height, width, row, column }, map, head, mass, attributes) {
  if (!gaussians) {
    const lines = contour(map, height, width, mass);
    const d = lines.map(([[a, b], [c, e]]) => `M${b + 0.5} ${a + 0.5}L${e + 0.5} ${c + 0.5}`).join("");
    return svg("path", { d, ...attributes });
  }
  const { center, spreads } = gaussians[head];
  const { radii, angle } = gaussianEllipse(spreads, mass);
  const [x, y] = [column + center[1] + 0.5, row + center[0] + 0.5];
  // The angle is counted from the row axis, which points down.
  const turned = { cx: x, cy: y, rx: radii[1], ry: radii[0], transform: `rotate(${-angle} ${x} ${y})` };
  return svg("ellipse", { ...turned, ...attributes });
}

const square = (row, column, stroke, wide) =>
  svg("rect", {
    x: column + 0.06,
    y: row + 0.06,
    width: 0.88,
    height: 0.88,
    fill: "none",
    stroke,
    "stroke-width": wide,
  });

function gridLines(height, width) {
  const rows = Array.from({ length: height + 1 }, (_, i) => `M0 ${i}H${width}`);
  const columns = Array.from({ length: width + 1 }, (_, j) => `M${j} 0V${height}`);
  const look = { stroke: "currentColor", "stroke-opacity": 0.25, "stroke-width": 0.02, fill: "none" };
  return svg("path", { d: [...rows, ...columns].join(""), ...look });
}

/** Draw a map for each head, the query pixel framed; each map's scale ends at its own largest value. */
export function drawMaps(picture, shown) {
  const { height, width, layer } = shown;
  const maps = shown.maps(shown.query);
  const columns = Math.ceil(Math.sqrt(maps.length));
  const top = 0.13 * width; // room for a title
  const [boxWidth, boxHeight] = [1.08 * width, height + top + 0.08 * width];
  const box = [columns * boxWidth - 0.08 * width, Math.ceil(maps.length / columns) * boxHeight];
  picture.setAttribute("viewBox", `0 0 ${box.join(" ")}`);
  const label = `Maps of ${maps.length} heads of layer ${layer + 1}; the table below has their numbers.`;
  picture.setAttribute("aria-label", label);
  picture.replaceChildren(
    ...maps.map((map, head) => {
      const corner = [(head % columns) * boxWidth, Math.floor(head / columns) * boxHeight];
      return svg("g", { transform: `translate(${corner.join(" ")})` }, drawMap(shown, map, head, top));
    }),
  );
}

function drawMap({ height, width, row, column }, map, head, top) {
  const frame = { width: 1, height: 1, fill: "none", stroke: "#fff", "stroke-width": 0.012 * width };
  const pixelated = { preserveAspectRatio: "none", "image-rendering": "pixelated" };
  const name = { x: 0.1 * width, y: 0.09 * width, "font-size": 0.085 * width, fill: "currentColor" };
  return [
    svg("circle", { cx: 0.045 * width, cy: 0.06 * width, r: 0.035 * width, fill: headColor(head) }),
    svg("text", name, `head ${head + 1}, up to ${percent(Math.max(...map))}`),
    svg("image", { href: heatmap(map, height, width), y: top, width, height, ...pixelated }),
    svg("rect", { x: column, y: row + top, ...frame }),
  ];
}
