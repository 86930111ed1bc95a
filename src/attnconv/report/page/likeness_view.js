// Is it a convolution? Numbers of every layer, as it began and as it was trained, with what chance and a convolution give.

import { chart } from "./chart.js";
import { html, refill, runLink, select } from "./dom.js";

const LEAD =
  "A convolution looks at fixed shifts, one pixel per tap, for all images. These numbers show how close each layer " +
  "of a trained network comes to that; dashed lines are for the same network before training. scripts/probe.py measured " +
  "them on test images. Gray bands show the same number for nine hard heads, which are a 3 x 3 convolution except at " +
  "the border, and for uniform or random attention; each reaches from its value on independent inputs to that on smooth ones.";

const BLUE = "#0072b2";
const ORANGE = "#d55e00";
const GREEN = "#009e73";
const PURPLE = "#cc79a7";

const HARD = "nine hard heads";
const EVEN = "even";
const RANDOM = "random";
const SHOWN = { [EVEN]: "uniform attention", [RANDOM]: "random attention" };

// What to draw: numbers of probe.json by name, and attention of known nature to read one of them by.
const MEASURES = {
  explained: {
    title: "Share of the layer's output that the best K x K convolution explains",
    numbers: { conv1: ["1 x 1", PURPLE], conv3: ["3 x 3", ORANGE], conv5: ["5 x 5", GREEN], conv7: ["7 x 7", BLUE] },
    levels: { conv3: [HARD, EVEN, RANDOM] },
    domain: [-0.02, 1.05],
  },
  joint: {
    title: "Joint residual: how far a 3 x 3 convolution is from what the heads can compute",
    numbers: { joint_residual: ["joint residual", BLUE] },
    levels: { joint_residual: [HARD, EVEN] },
    domain: [-0.02, 1.08],
  },
  cause: {
    title: "What a head's map depends on: shares of its variance",
    numbers: { by_shift: ["shift", BLUE], by_place: ["place", GREEN], by_content: ["content", ORANGE] },
    levels: { by_shift: [HARD, RANDOM] },
    domain: [-0.02, 1.08],
  },
  distance: {
    title: "Distance from the query to the attended pixels, in positions",
    numbers: { distance: ["distance", BLUE], spread: ["spread around the center", ORANGE] },
    levels: { distance: [HARD, EVEN] },
  },
  entropy: {
    title: "Entropy of attention, in nats",
    numbers: { entropy: ["entropy", BLUE] },
    levels: { entropy: [HARD, EVEN] },
  },
  peak: {
    title: "Largest probability of a head, mean over queries",
    numbers: { one_pixel: ["one pixel", BLUE] },
    levels: { one_pixel: [HARD, EVEN] },
    domain: [-0.02, 1.08],
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
  const chosen = () => runs.find(({ run }) => run === state.values.probe) ?? runs.find(({ run }) => run === page.runs[0]?.run) ?? runs[0];
  const measures = html("div", {});
  const update = () => {
    const run = chosen();
    const known = Object.keys(MEASURES).filter((name) => isKnown(run, name));
    const measure = known.includes(state.values.measure) ? state.values.measure : known[0];
    const options = known.map((name) => [name, MEASURES[name].title]);
    refill(measures, select("Measure", options, measure, (name) => state.set({ measure: name })));
    figure.replaceChildren(likenessChart(run, measure, levelsOf(page.data.calibration, run, measure)));
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
      measures,
    ),
    about,
    figure,
  );
}

/** Whether a run was probed for a measure: older probes lack measures that were redefined since. */
const isKnown = ({ layers }, measure) =>
  Object.keys(MEASURES[measure].numbers).some((key) => layers.some((layer) => layer[key]?.[1] !== null));

/** Levels to read a measure by: the same number for attention of known nature on a map of that size, if measured. */
function levelsOf(calibration, { grid }, measure) {
  if (!calibration || String(calibration.positions) !== String(grid)) return [];
  return Object.entries(MEASURES[measure].levels).flatMap(([key, attentions]) =>
    attentions.map((attention) => {
      const values = calibration.rows.filter((row) => row.attention === attention).map((row) => row[key]);
      const name = MEASURES[measure].numbers[key][0];
      return { low: Math.min(...values), y: Math.max(...values), text: `${name}: ${SHOWN[attention] ?? attention}` };
    }),
  );
}

function likenessChart({ layers }, measure, levels) {
  const { title, numbers, domain } = MEASURES[measure];
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
    levels,
    header: ["layer", ...columns.map(([, , name]) => name)],
    rows: layers.map((layer, index) => [
      String(index + 1),
      ...columns.map(([key, when]) => String(layer[key][when] ?? "")),
    ]),
  });
}
