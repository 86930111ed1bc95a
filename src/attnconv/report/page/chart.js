// Line charts with bands and dots, a legend, a table, and a row of buttons that saves them.

import { html, readout, roving, saving, svg, table } from "./dom.js";
import { SHAPES } from "./colors.js";

const HEIGHT = 360;
// As wide as there is room for when the page opens, so that labels stay readable on a phone.
const WIDTH = Math.min(640, Math.max(320, (globalThis.innerWidth ?? 640) - 40));
const MARGIN = { left: 64, right: 16, top: 12, bottom: 44 };

function scale(kind, [low, high], [from, to]) {
  const position = kind === "log" ? Math.log : (value) => value;
  const [a, b] = [position(low), position(high)];
  return (value) => from + ((position(value) - a) / (b - a || 1)) * (to - from);
}

/** Round steps that cover a range in about `count` parts. */
export function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) =>
    Number(((first + index) * step).toPrecision(12)),
  );
}

const extent = (values) => [Math.min(...values), Math.max(...values)];

function axes({ x, y }, place) {
  const bottom = HEIGHT - MARGIN.bottom;
  const label = { fill: "currentColor", "font-size": 12 };
  return svg(
    "g",
    {},
    y.ticks.map((tick) => [
      svg("line", {
        x1: MARGIN.left,
        x2: WIDTH - MARGIN.right,
        y1: place.y(tick),
        y2: place.y(tick),
        stroke: "currentColor",
        "stroke-opacity": 0.15,
      }),
      svg("text", { ...label, x: MARGIN.left - 6, y: place.y(tick) + 4, "text-anchor": "end" }, y.format(tick)),
    ]),
    x.ticks.map((tick) => [
      svg("line", { x1: place.x(tick), x2: place.x(tick), y1: bottom, y2: bottom + 4, stroke: "currentColor" }),
      svg("text", { ...label, x: place.x(tick), y: bottom + 18, "text-anchor": "middle" }, x.format(tick)),
    ]),
    svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: bottom, y2: bottom, stroke: "currentColor" }),
    svg(
      "text",
      { ...label, x: (MARGIN.left + WIDTH - MARGIN.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" },
      x.label,
    ),
    svg(
      "text",
      { ...label, x: 14, y: HEIGHT / 2 - 16, "text-anchor": "middle", transform: `rotate(-90 14 ${HEIGHT / 2 - 16})` },
      y.label,
    ),
  );
}

const path = (points) => points.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");

function drawSeries({ color, dash, points = [] }, place) {
  const band = points.filter((point) => point.low !== undefined);
  const edge = (side) => band.map((point) => [place.x(point.x), place.y(point[side])]);
  return [
    band.length > 1
      ? svg("path", {
          d: `${path([...edge("low"), ...edge("high").toReversed()])}Z`,
          fill: color,
          "fill-opacity": 0.15,
        })
      : band.length // one point has a bar
        ? svg("path", { d: path([...edge("low"), ...edge("high")]), stroke: color, "stroke-opacity": 0.5, "stroke-width": 3 })
        : null,
    svg("path", {
      d: path(points.map((point) => [place.x(point.x), place.y(point.y)])),
      fill: "none",
      stroke: color,
      "stroke-width": 2,
      "stroke-dasharray": dash,
    }),
  ];
}

/** A mark of a shape of colors.js, thinly outlined so that pale colors stay visible; hollow marks have their outline only. */
function symbol(shape, color, hollow, size, x, y, attributes = {}, ...children) {
  const look = hollow
    ? { fill: "none", stroke: color, "stroke-width": 1.5 }
    : { fill: color, stroke: "currentColor", "stroke-width": 0.5 };
  const at = `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`;
  return svg("path", { d: SHAPES[shape] ?? SHAPES.o, transform: at, "vector-effect": "non-scaling-stroke", ...look, ...attributes }, ...children);
}

function drawMark(mark, place) {
  return symbol(
    mark.shape,
    mark.color,
    mark.hollow,
    mark.size ?? 3.5,
    place.x(mark.x),
    place.y(mark.y),
    {
      class: "mark",
      "data-mark": mark.index,
      tabindex: -1,
      role: "button",
      "aria-label": mark.text,
    },
    svg("title", {}, mark.text),
  );
}

/** Marks are one tab stop; whatever has the focus or is clicked is read out. */
function walkable(picture, marks, show) {
  const nodes = [...picture.querySelectorAll(".mark")];
  roving(picture, [nodes]);
  picture.addEventListener("focusin", ({ target }) => {
    if (target.dataset.mark) show(marks[Number(target.dataset.mark)]);
  });
  picture.addEventListener("click", ({ target }) => target.closest?.(".mark")?.focus());
}

/**
 * A chart with all that belongs to it.
 * @param spec {name, title, x, y: {label, kind, domain, ticks, format},
 *   series: [{name, color, shape of its dots, dash, points, dots}],
 *   levels: [{y, text}], or bands with {low} too, header, rows}; points have x, y and maybe low, high; dots x, y, text and maybe more, which
 *   `about(dot)` turns into what is read out
 */
export function chart(spec) {
  const { series, levels = [] } = spec;
  const drawn = series.flatMap(({ points = [], dots = [] }) => [...points, ...dots]);
  const heights = drawn.flatMap(({ y, low = y, high = y }) => [y, low, high]).concat(levels.flatMap(({ y, low = y }) => [low, y]));
  const x = axis(
    spec.x,
    drawn.map((point) => point.x),
  );
  const y = axis(spec.y, heights);
  const place = {
    x: scale(x.kind, x.domain, [MARGIN.left + 8, WIDTH - MARGIN.right - 8]),
    y: scale(y.kind, y.domain, [HEIGHT - MARGIN.bottom, MARGIN.top]),
  };
  const marks = series
    .flatMap(({ color, shape, dots = [] }) => dots.map((dot) => ({ ...dot, color, shape })))
    .map((mark, index) => ({ ...mark, index }));
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": spec.title, class: "chart" },
    axes({ x, y }, place),
    levels.map(({ y: high, low }) =>
      low === undefined
        ? svg("path", {
            d: path([MARGIN.left, WIDTH - MARGIN.right].map((end) => [end, place.y(high)])),
            stroke: "currentColor",
            "stroke-dasharray": "2 4",
          })
        : svg("rect", {
            x: MARGIN.left,
            y: place.y(high),
            width: WIDTH - MARGIN.left - MARGIN.right,
            height: Math.max(place.y(low) - place.y(high), 1.5),
            fill: "currentColor",
            "fill-opacity": 0.15,
          }),
    ),
    levels.map((level) =>
      svg(
        "text",
        {
          x: WIDTH - MARGIN.right,
          y: place.y(level.y) - 4,
          "text-anchor": "end",
          "font-size": 11,
          fill: "currentColor",
          class: "halo",
        },
        level.text,
      ),
    ),
    series.map((line) => drawSeries(line, place)),
    marks.map((mark) => drawMark(mark, place)),
  );
  const { line, say } = readout();
  walkable(picture, marks, (mark) => say(spec.about ? spec.about(mark, say) : mark.text));
  return html(
    "figure",
    { id: spec.name },
    html("figcaption", {}, spec.title),
    legend(series),
    picture,
    marks.length ? line : null,
    html(
      "div",
      { className: "row" },
      saving(spec.name, { "": () => picture }, () => spec),
    ),
    html("details", {}, html("summary", {}, "The same as a table"), table(spec.title, spec.header, spec.rows)),
  );
}

function axis({ label, kind = "linear", domain, ticks: given, format = String }, values) {
  const [low, high] = domain ?? extent(values);
  const room = domain || kind === "log" ? 0 : (high - low) * 0.05;
  const range = [low - room, high + room];
  return { label, kind, domain: range, ticks: given ?? ticks(...range), format };
}

function legend(series) {
  return html(
    "ul",
    { className: "legend" },
    series
      .filter(({ name }) => name)
      .map(({ name, color, shape, dash, points, dots }) =>
        html(
          "li",
          {},
          svg(
            "svg",
            { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" },
            points && svg("line", { x1: 0, x2: 24, y1: 4, y2: 4, stroke: color, "stroke-width": 3, "stroke-dasharray": dash }),
            dots && shape && symbol(shape, color, false, 4, 12, 4),
          ),
          name,
        ),
      ),
  );
}
