// Is it a convolution? Numbers of every layer, as it began and as it was trained, with what chance and a convolution give.

import { chart } from "./chart.js";
import { html, runLink, select } from "./dom.js";

const LEAD =
  "A convolution looks at fixed shifts, one pixel per tap, whatever the image. These numbers say how near each layer " +
  "of a trained network comes to that, next to the same network before training: dashed. They were measured on test " +
  "images by scripts/probe.py.";

const BLUE = "#0072b2";
const ORANGE = "#d55e00";
const GREEN = "#009e73";
const PURPLE = "#cc79a7";

/** Mean distance between two pixels of an H x W map, in positions. */
export function meanDistance(height, width) {
  let sum = 0;
  for (let row = 1 - height; row < height; row++) {
    for (let column = 1 - width; column < width; column++) {
      sum += (height - Math.abs(row)) * (width - Math.abs(column)) * Math.hypot(row, column);
    }
  }
  return sum / (height * width) ** 2;
}

// What to draw: numbers of probe.json by name, and levels to read them by, from N heads on an H x W map.
const MEASURES = {
  explained: {
    title: "Share of the layer's output that the best K x K convolution explains",
    numbers: { conv1: ["1 x 1", PURPLE], conv3: ["3 x 3", ORANGE], conv5: ["5 x 5", GREEN], conv7: ["7 x 7", BLUE] },
    levels: () => [{ y: 1, text: "a convolution" }],
    domain: [0, 1.08],
  },
  lemma: {
    title: "Lemma residual: how far the taps of a 3 x 3 kernel are from the span of the heads",
    numbers: { lemma_residual: ["lemma residual", BLUE] },
    levels: (heads, height, width) => [
      { y: 0, text: "a convolution" },
      { y: Math.max(0, 1 - heads / (height * width)), text: `${heads} random maps` },
    ],
    domain: [-0.02, 1.05],
  },
  cause: {
    title: "What a head's map depends on: shares of its variance",
    numbers: { by_shift: ["shift", BLUE], by_place: ["place", GREEN], by_content: ["content", ORANGE] },
    levels: () => [{ y: 1, text: "shift alone: a convolution" }],
    domain: [-0.02, 1.08],
  },
  distance: {
    title: "Distance from the query to what is attended to, in positions",
    numbers: { distance: ["distance", BLUE], spread: ["spread around the center", ORANGE] },
    levels: (_, height, width) => [{ y: meanDistance(height, width), text: "distance of even attention" }],
  },
  entropy: {
    title: "Entropy of attention, in nats",
    numbers: { entropy: ["entropy", BLUE] },
    levels: (_, height, width) => [
      { y: 0, text: "a convolution" },
      { y: Math.log(height * width), text: "even attention" },
    ],
  },
  peak: {
    title: "Largest probability of a head, mean over queries",
    numbers: { one_pixel: ["one pixel", BLUE] },
    levels: (_, height, width) => [
      { y: 1, text: "a convolution" },
      { y: 1 / (height * width), text: "even attention" },
    ],
    domain: [0, 1.08],
  },
};

export const MEASURE_NAMES = Object.keys(MEASURES);

/** The section; null where no run was probed. */
export function likenessSection(page) {
  const { state } = page;
  const runs = page.data.probes;
  if (!runs.length) return null;
  const figure = html("div", {});
  const about = html("p", { className: "readout" });
  const chosen = () => runs.find(({ run }) => run === state.values.probe) ?? runs[0];
  const update = () => {
    const run = chosen();
    figure.replaceChildren(likenessChart(run, state.values.measure));
    about.replaceChildren("From ", runLink(run), ".");
  };
  state.onChange((changed) => {
    if (changed.has("probe") || changed.has("measure")) update();
  });
  update();
  const options = runs.map((run) => [run.run, page.labelOf(run)]);
  return html(
    "section",
    { id: "likeness" },
    html("h2", {}, "Is it a convolution?"),
    html("p", {}, LEAD),
    html(
      "div",
      { className: "controls" },
      select("Run", options, chosen().run, (probe) => state.set({ probe })),
      select(
        "Measure",
        Object.entries(MEASURES).map(([name, { title }]) => [name, title]),
        state.values.measure,
        (measure) => state.set({ measure }),
      ),
    ),
    about,
    figure,
  );
}

function likenessChart({ layers, heads, grid: [height, width] }, measure) {
  const { title, numbers, levels, domain } = MEASURES[measure];
  const weights = ["initial", "trained"];
  const series = Object.entries(numbers).flatMap(([key, [name, color]]) =>
    [1, 0].map((when) => {
      const values = layers
        .map((layer, index) => ({ x: index + 1, y: layer[key][when] }))
        .filter(({ y }) => y !== null);
      const text = ({ x, y }) => `layer ${x}, ${name}, ${weights[when]}: ${y}`;
      return {
        name: `${name}, ${weights[when]}`,
        color,
        dash: when ? undefined : "5 4",
        points: values,
        dots: values.map((point) => ({ ...point, text: text(point), hollow: !when })),
      };
    }),
  );
  const columns = Object.entries(numbers).flatMap(([key, [name]]) =>
    [1, 0].map((when) => [key, when, `${name}, ${weights[when]}`]),
  );
  return chart({
    name: `likeness-${measure}`,
    title,
    x: { label: "layer", domain: [0.8, layers.length + 0.2], ticks: layers.map((_, index) => index + 1) },
    y: { label: "", domain },
    series,
    levels: levels(heads, height, width),
    header: ["layer", ...columns.map(([, , name]) => name)],
    rows: layers.map((layer, index) => [
      String(index + 1),
      ...columns.map(([key, when]) => String(layer[key][when] ?? "")),
    ]),
  });
}
