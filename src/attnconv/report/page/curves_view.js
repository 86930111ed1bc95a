// The study's numbers: the claims that they decide, and accuracy against data and against time.

import { chart } from "./chart.js";
import { modelStyle } from "./colors.js";
import { copying, html, placeOf, runLink, saving, select, table } from "./dom.js";
import { accuracy, thousands } from "./format.js";

const LEAD =
  "Each dot is a run; lines are means over seeds, and bands are their 95% intervals. Click a dot, or focus it and use " +
  "the arrow keys, to see its command and its folder.";

const CLAIMS_LEAD =
  "No threshold has changed since 2026-11-25; some rules have (see the README). The letter links to the details of a claim. The command produces the evidence.";
const CLAIM_COLUMNS = ["id", "claim", "verdict", "number, 95% interval, n", "command"];

const share = (value) => `${Math.round(100 * value)}%`;

/** What is read out of a run's dot: its numbers, its folder, and the command that repeats it. */
function aboutRun({ point, text }, say) {
  return [
    `${text}. `,
    runLink(point),
    " ",
    html("code", {}, point.command),
    " ",
    copying(() => point.command, say),
  ];
}

const described = ({ run, model, train_images: images, seed, epochs, test_acc: share_, minutes, clock }) =>
  `${model} (${run.split("/")[0]}), ${thousands(images)} images, ${epochs} ${epochs === 1 ? "epoch" : "epochs"}, seed ${seed}: ${accuracy(share_)} in ${minutes} ` +
  `${clock ? "wall-clock minutes" : "CPU minutes"}`;

const dotOf = (point, x) => ({ x, y: point.test_acc, size: 3, text: described(point), point });

const columns = ["model", "images", "seed", "epochs", "test accuracy", "minutes", "run"];
const rowOf = (point) => [
  point.model,
  String(point.train_images),
  String(point.seed),
  String(point.epochs),
  accuracy(point.test_acc),
  String(point.minutes),
  runLink(point),
];

/** The section; null where the page shows a reader's own runs only. */
export function curvesSection(page) {
  const { state, data } = page;
  if (!data.points?.length) return null;
  const figure = html("div", {});
  const chosen = () => data.protocols.find(({ title }) => title === state.values.protocol) ?? data.protocols[0];
  const update = () => figure.replaceChildren(...drawn(data, chosen()));
  state.onChange((changed) => changed.has("protocol") && update());
  const parts = [];
  if (data.protocols.length) {
    update();
    const options = data.protocols.map(({ title }) => [title, title]);
    const control = select("Trained for", options, chosen().title, (protocol) => state.set({ protocol }));
    parts.push(html("div", { className: "controls" }, control), figure);
  }
  return html(
    "section",
    { id: "curves" },
    html("h2", {}, "How much data, how much time?"),
    html("p", {}, LEAD),
    parts,
    timeFigure(page),
  );
}

/** The section with all claims in a table, each with a link to all that is behind it; null without claims. */
export function claimsSection({ data }) {
  if (!data.claims) return null;
  const { page, rows } = data.claims;
  const body = rows.map(({ id, claim, status, number, command }) => [
    html("a", { href: placeOf({ link: `${page}#${id.toLowerCase()}` }) }, id),
    claim,
    html("strong", {}, status),
    number,
    html("code", {}, command),
  ]);
  const counts = Map.groupBy(rows, ({ status }) => status);
  const counted = [...counts].map(([status, of]) => `${of.length} ${status}`).join(", ");
  return html(
    "section",
    { id: "claims" },
    html("h2", {}, "Which claims hold?"),
    html("p", {}, `${CLAIMS_LEAD} Of ${rows.length} claims: ${counted}.`),
    table("Claims and verdicts", CLAIM_COLUMNS, body),
    html("div", { className: "row" }, saving("claims", {}, () => ({ header: CLAIM_COLUMNS, rows: body }))),
  );
}

/** How many times the images of the control a model needs; null where no curve reaches an accuracy. */
function needsChart({ title, needs }, link) {
  if (!needs.length) return null;
  const between = ({ low, high }) => (low === undefined ? "" : ` (95% interval ${low} to ${high})`);
  const apart = (x, place) => x + 0.003 * (place - (needs.length - 1) / 2); // so that no model hides another
  const said = (model, point) =>
    `${model} needs ${point.y} times as many images as conv3x3 for ${share(point.x)}${between(point)}, ${point.n} seeds`;
  return chart({
    name: "images-needed",
    title: `Images needed, as a multiple of those of conv3x3: ${title}`,
    x: { label: "for a test accuracy of", format: share, ticks: [0.45, 0.6, 0.7, 0.8], domain: [0.43, 0.82] },
    y: { label: "times the images of conv3x3" },
    levels: [{ y: 1, text: "conv3x3" }],
    series: needs.map(({ model, points, command, run }, place) => ({
      name: model,
      ...modelStyle(model),
      points: points.map((point) => ({ ...point, x: apart(point.x, place) })),
      dots: points.map((point) => ({
        x: apart(point.x, place),
        y: point.y,
        text: said(model, point),
        point: { command, run, link: link(run) },
      })),
    })),
    about: aboutRun,
    header: ["model", "for", "times", "low", "high", "seeds"],
    rows: needs.flatMap(({ model, points }) =>
      points.map((point) => [
        model,
        share(point.x),
        String(point.y),
        String(point.low ?? ""),
        String(point.high ?? ""),
        String(point.n),
      ]),
    ),
  });
}

function drawn(data, protocol) {
  // Runs lie in one folder, so that the link of one says where the others are.
  const [{ run, link }] = data.points;
  const linkOf = (name) => link.slice(0, link.length - run.length) + name;
  return [dataChart(data, protocol), needsChart(protocol, linkOf)].filter(Boolean);
}

function dataChart({ points }, { title, curves, runs }) {
  const inside = points.filter(({ run }) => runs.includes(run));
  const ticks = [...new Set(inside.map(({ train_images: images }) => images))].toSorted((a, b) => a - b);
  const series = curves.map(({ model, points: line }) => ({
    name: model,
    ...modelStyle(model),
    points: line,
    dots: inside.filter((point) => point.model === model).map((point) => dotOf(point, point.train_images)),
  }));
  return chart({
    name: "data-size",
    title: `Test accuracy by training images: ${title}`,
    x: { label: "training images", kind: "log", ticks, format: (images) => `${images / 1000}k` },
    y: { label: "test accuracy", format: share },
    series,
    about: aboutRun,
    header: columns,
    rows: inside.map(rowOf),
  });
}

const budgetOf = ({ train_images: images, epochs, scale, recipe, precision }) =>
  [images, epochs, scale, recipe, precision].join(" ");

/** Accuracy against time of the runs with one budget, scale, recipe and precision; first, those of the largest one. */
function timeFigure({ state, data }) {
  const budgets = Map.groupBy(data.points, budgetOf);
  const work = (budget) => budget.split(" ")[0] * budget.split(" ")[1];
  const runs = (budget) => budgets.get(budget).length;
  const names = [...budgets.keys()].toSorted((a, b) => work(b) - work(a) || runs(b) - runs(a));
  const figure = html("div", {});
  const chosen = () => (budgets.has(state.values.budget) ? state.values.budget : names[0]);
  const update = () => figure.replaceChildren(timeChart(budgets.get(chosen())));
  state.onChange((changed) => changed.has("budget") && update());
  update();
  const options = names.map((name) => {
    const { train_images: images, epochs, scale, recipe, precision } = budgets.get(name)[0];
    const amount = `${thousands(images)} images, ${epochs} ${epochs === 1 ? "epoch" : "epochs"}`;
    return [name, `${amount}, ${scale}, ${recipe}, ${precision}`];
  });
  const control = select("Runs of", options, chosen(), (budget) => state.set({ budget }));
  return html("div", {}, html("div", { className: "controls" }, control), figure);
}

const MINUTES = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500];

const ticksWithin = (minutes) =>
  MINUTES.filter((tick) => tick >= Math.min(...minutes) * 0.98 && tick <= Math.max(...minutes) * 1.02);

function timeChart(points) {
  const models = [...new Set(points.map(({ model }) => model))];
  return chart({
    name: "minutes",
    title: "Test accuracy by minutes of training (hollow: wall-clock minutes, not the sum over cores)",
    x: { label: "minutes", kind: "log", ticks: ticksWithin(points.map(({ minutes }) => minutes)) },
    y: { label: "test accuracy", format: (value) => `${(100 * value).toFixed(1)}%` },
    series: models.map((model) => ({
      name: model,
      ...modelStyle(model),
      dots: points
        .filter((point) => point.model === model)
        .map((point) => ({ ...dotOf(point, point.minutes), hollow: point.clock })),
    })),
    about: aboutRun,
    header: columns,
    rows: points.map(rowOf),
  });
}
