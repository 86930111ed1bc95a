// The theorem, to play with: drag a head, see its tap; sharpen the heads, see the error vanish.

import { chart } from "./chart.js";
import { headColor } from "./colors.js";
import { arrow, choice, html, readout, saving, select, slider, button, svg } from "./dom.js";
import { scientific } from "./format.js";
import { grayscale } from "./pictures.js";
import { textLike } from "./state.js";
import { KERNELS, TAPS, attend, convolve, differences, luminance, reachOf, tapOf } from "./theorem.js";

const REACH = 3; // of the grid of shifts, in pixels
export const LEAST = 0.5; // alpha
export const MOST = 104;
const STEPS = 100; // of its slider
const LEAD =
  "A head whose scores are -alpha times the squared distance from a center is a Gaussian. As alpha grows, all of its " +
  "attention goes to one pixel: the head becomes a tap of a kernel, and nine such heads are a 3 x 3 convolution " +
  "(the paper's Theorem 1). Drag a head, or focus it and use the arrow keys, and its tap follows (blue for positive " +
  "weights, orange for negative ones).";
const SMALLEST = 1e-9; // stands for 0 on the logarithmic axis

/** How the centers of the heads are written in the address. */
const WITHIN = "-?([0-2](\\.\\d+)?|3)"; // REACH
export const centersField = textLike(new RegExp(`^(${WITHIN},${WITHIN}(;|$)){9}(?<!;)$`));

const readCenters = (text) =>
  text ? text.split(";").map((pair) => pair.split(",").map(Number)) : TAPS;
const PAPERS = 46; // the alpha that the paper calls hard
/** The alphas of the slider, evenly spaced in the logarithm, with the paper's. */
const SLIDER = Array.from({ length: STEPS + 1 }, (_, step) => Number((LEAST * (MOST / LEAST) ** (step / STEPS)).toPrecision(3)))
  .concat(PAPERS)
  .toSorted((a, b) => a - b);
const stepOf = (alpha) => {
  const far = SLIDER.map((each) => Math.abs(Math.log(each / alpha)));
  return far.indexOf(Math.min(...far));
};

/** The section; null where the page has no image. */
export function theoremSection(page) {
  const { state } = page;
  const run = page.runs.find((each) => page.imagesOf(each));
  if (!run) return null;
  const [, height, width] = run.image;
  const plane = svg("svg", { class: "plane", role: "group", "aria-label": "Heads on a grid of shifts" });
  const results = svg("svg", { role: "img" });
  const { line, say } = readout();
  const curve = html("div", {});
  const current = () => {
    const { kernel, alpha, border, centers } = state.values;
    const image = luminance(page.image(run).pixels, run.image);
    return {
      image,
      height,
      width,
      weights: KERNELS[kernel],
      alpha,
      padded: border === "padded",
      centers: readCenters(centers),
    };
  };

  function moveHead(head, center) {
    const bounded = center.map((value) => Math.round(Math.min(Math.max(value, -REACH), REACH) * 100) / 100);
    const centers = current().centers.map((each, index) => (index === head ? bounded : each));
    state.set({ centers: centers.map((each) => each.join(",")).join(";") });
  }

  function update() {
    const setting = current();
    drawPlane(plane, setting, moveHead);
    const outcome = compare(setting);
    drawResults(results, setting, outcome);
    say(inWords(setting, outcome));
    curve.replaceChildren(errorChart(setting));
  }

  state.onChange((changed) => {
    if (["kernel", "alpha", "border", "centers", "image"].some((name) => changed.has(name))) update();
  });
  update();
  const borders = [
    ["padded", "the padded image"],
    ["image", "the image alone"],
  ];
  return html(
    "section",
    { id: "theorem" },
    html("h2", {}, "Nine sharp heads are a convolution"),
    html("p", {}, LEAD),
    html(
      "div",
      { className: "controls" },
      select(
        "Kernel",
        Object.keys(KERNELS).map((name) => [name, name]),
        state.values.kernel,
        (kernel) => state.set({ kernel }),
      ),
      slider(
        "Alpha",
        { min: 0, max: SLIDER.length - 1 },
        stepOf(state.values.alpha),
        (step) => String(step === stepOf(state.values.alpha) ? state.values.alpha : SLIDER[step]),
        (step) => state.set({ alpha: SLIDER[step] }),
      ),
      choice("Keys at the border", "border", borders, state.values.border, (border) => state.set({ border })),
      button("Reset the heads", () => state.set({ centers: "" })),
    ),
    line,
    html("div", { className: "panels" }, html("figure", {}, plane), html("figure", {}, results)),
    html(
      "div",
      { className: "row" },
      saving("theorem", { heads: () => plane, images: () => results }, () => asTable(errors(current()))),
    ),
    curve,
  );
}

function compare({ image, height, width, centers, weights, alpha, padded }) {
  const attention = attend(image, height, width, centers, weights, alpha, padded);
  const convolution = convolve(image, height, width, centers, weights);
  const largest = convolution.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return { attention, convolution, largest, ...differences(attention, convolution, height, width, reachOf(centers)) };
}

function inWords({ alpha, padded }, { all, inside, largest }) {
  const border = padded ? "" : " Without padding, heads at the border look at the nearest existing pixels.";
  return (
    `Alpha ${alpha}: attention differs from the convolution by at most ${scientific(all)} (away from the border: ` +
    `${scientific(inside)}); outputs reach ${largest.toFixed(2)}.${border}`
  );
}

function drawPlane(picture, { centers, weights, alpha }, moveHead) {
  const [low, size] = [-REACH - 0.5, 2 * REACH + 1];
  const focused = [...picture.querySelectorAll(".head")].indexOf(document.activeElement);
  picture.setAttribute("viewBox", `${low} ${low} ${size} ${size}`);
  const lines = Array.from(
    { length: size + 1 },
    (_, index) => `M${low + index} ${low}V${-low}M${low} ${low + index}H${-low}`,
  );
  const most = Math.max(...weights.map(Math.abs));
  const taps = centers.map(tapOf).map(([row, column], head) =>
    svg("rect", {
      x: column - 0.5,
      y: row - 0.5,
      width: 1,
      height: 1,
      fill: weights[head] < 0 ? "#d55e00" : "#0072b2",
      "fill-opacity": (0.75 * Math.abs(weights[head])) / most,
    }),
  );
  picture.replaceChildren(
    ...taps,
    svg("path", { d: lines.join(""), stroke: "currentColor", "stroke-opacity": 0.3, "stroke-width": 0.02 }),
    svg("rect", {
      x: -0.46,
      y: -0.46,
      width: 0.92,
      height: 0.92,
      fill: "none",
      stroke: "currentColor",
      "stroke-width": 0.06,
    }),
    ...centers.map((center, head) => headHandle(picture, center, head, alpha, weights[head], moveHead)),
  );
  if (focused >= 0) picture.querySelectorAll(".head")[focused].focus();
}

function headHandle(picture, center, head, alpha, weight, moveHead) {
  const [row, column] = center;
  const radius = Math.sqrt(Math.LN2 / alpha); // of the disc that holds half of the attention
  const color = headColor(head);
  const dark = parseInt(color.slice(3, 5), 16) < 0x40; // its green, which counts most
  const text = `Head ${head + 1}: ${row} rows down, ${column} columns right; weight ${Number(weight.toFixed(4))}`;
  const handle = svg(
    "g",
    { class: "head", tabindex: 0, role: "button", "aria-label": `${text}; arrow keys move it` },
    svg("title", {}, text),
    svg("circle", {
      cx: column,
      cy: row,
      r: radius,
      fill: color,
      "fill-opacity": 0.25,
      stroke: color,
      "stroke-width": 0.05,
    }),
    svg("circle", { cx: column, cy: row, r: 0.17, fill: color, stroke: "#000", "stroke-width": 0.04 }),
    svg(
      "text",
      { x: column, y: row + 0.08, "font-size": 0.22, "text-anchor": "middle", fill: dark ? "#fff" : "#000" },
      String(head + 1),
    ),
  );
  handle.addEventListener("keydown", (event) => {
    const step = arrow(event);
    if (!step) return;
    event.preventDefault();
    moveHead(head, [row + step[0] * (event.shiftKey ? 1 : 0.1), column + step[1] * (event.shiftKey ? 1 : 0.1)]);
  });
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.focus();
    drag(picture, (place) => moveHead(head, place));
  });
  return handle;
}

/** Follow the pointer until it is let go. */
function drag(picture, moved) {
  const move = (event) => {
    const box = picture.getBoundingClientRect();
    const at = (offset, length) => (offset / length) * (2 * REACH + 1) - REACH - 0.5;
    moved([at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)]);
  };
  const end = () => {
    removeEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel"]) removeEventListener(name, end);
  };
  addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, end);
}

function drawResults(picture, { image, height, width }, { attention, convolution, all }) {
  const low = convolution.reduce((a, b) => Math.min(a, b));
  const high = convolution.reduce((a, b) => Math.max(a, b));
  const difference = attention.map((value, pixel) => Math.abs(value - convolution[pixel]));
  const parts = [
    ["image", image, 0, 1],
    ["attention", attention, low, high],
    ["convolution", convolution, low, high],
    [`difference, white: ${scientific(all)}`, difference, 0, all || 1],
  ];
  const [boxWidth, boxHeight] = [1.05 * width, height + 0.15 * width];
  picture.setAttribute("viewBox", `0 0 ${2 * boxWidth - 0.05 * width} ${2 * boxHeight}`);
  picture.setAttribute("aria-label", "The image, the outputs of attention and of the convolution, and their difference");
  const pixelated = { preserveAspectRatio: "none", "image-rendering": "pixelated" };
  picture.replaceChildren(
    ...parts.map(([name, values, from, to], index) =>
      svg(
        "g",
        { transform: `translate(${(index % 2) * boxWidth} ${Math.floor(index / 2) * boxHeight})` },
        svg("text", { y: 0.08 * width, "font-size": 0.065 * width, fill: "currentColor" }, name),
        svg("image", {
          href: grayscale(values, height, width, from, to),
          y: 0.12 * width,
          width,
          height,
          ...pixelated,
        }),
      ),
    ),
  );
}

/** Error against alpha, from 0.5 to 104, with these centers, kernel and border. */
function errors(setting) {
  const alphas = [0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 11, 16, 23, 32, 46, 64, 80, 104];
  return alphas.map((alpha) => ({ alpha, ...compare({ ...setting, alpha }) }));
}

function asTable(found) {
  const rows = found.map(({ alpha, all, inside }) => [String(alpha), scientific(all), scientific(inside)]);
  return { header: ["alpha", "largest difference", "away from the border"], rows };
}

function errorChart(setting) {
  const found = errors(setting);
  const line = (name, color, dash, of) => ({
    name,
    color,
    dash,
    points: found.map((each) => ({ x: each.alpha, y: Math.max(of(each), SMALLEST) })),
    dots: found.map((each) => ({
      x: each.alpha,
      y: Math.max(of(each), SMALLEST),
      hollow: of(each) === 0,
      text: `alpha ${each.alpha}: ${name} ${scientific(of(each))}`,
    })),
  });
  return chart({
    name: "theorem-error",
    title: "How far attention is from the convolution, both in float32 (hollow: not at all; claim T2 compares with float64)",
    x: { label: "alpha", kind: "log", domain: [LEAST, MOST], ticks: [0.5, 1, 2, 4, 8, 16, 32, 46, 104] },
    y: {
      label: "largest difference",
      kind: "log",
      domain: [SMALLEST / 2, 20],
      ticks: [1e-9, 1e-7, 1e-5, 1e-3, 0.1, 10],
      format: (tick) => (tick === SMALLEST ? "0" : tick.toExponential(0)),
    },
    series: [
      line("anywhere", "#d55e00", undefined, ({ all }) => all),
      line("away from the border", "#0072b2", "6 3", ({ inside }) => inside),
    ],
    ...asTable(found),
  });
}
