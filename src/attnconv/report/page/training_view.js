// Accuracy by epoch of the runs in the page.

import { chart } from "./chart.js";
import { modelStyle } from "./colors.js";
import { html, runLink, table } from "./dom.js";
import { accuracy, thousands } from "./format.js";

const CURVES = { "test/acc": ["test", undefined], "val/acc": ["validation", "2 3"], "train/acc": ["training", "6 4"] };

/** The section: a chart of every run's accuracies, and a table of the runs. */
export function trainingSection(page) {
  const rows = page.runs.map((run) => [
    runLink(run),
    accuracy(run.test_acc),
    String(run.parameters ?? ""),
    html("code", {}, run.command),
  ]);
  return html(
    "section",
    { id: "training" },
    html("h2", {}, "How were they trained?"),
    html("p", {}, "Accuracy after each evaluated epoch. The last epoch counts; no epoch is selected."),
    trainingChart(page.runs),
    html("div", {}, table("The runs in this page", ["run", "test accuracy", "parameters", "command"], rows)),
  );
}

function trainingChart(runs) {
  const series = runs.flatMap((run) => Object.entries(CURVES).flatMap(([key, look]) => line(run, key, look)));
  return chart({
    name: "accuracy-by-epoch",
    title: "Accuracy by epoch",
    x: { label: "epoch" },
    y: { label: "accuracy", format: (share) => `${Math.round(100 * share)}%` },
    series,
    header: ["run", "of", "epoch", "accuracy"],
    rows: series.flatMap(({ run, of, points }) => points.map(({ x, y }) => [run, of, String(x), accuracy(y)])),
  });
}

function line({ run, model, train_images: images, curves }, key, [of, dash]) {
  if (!curves[key]) return [];
  const points = curves.epoch
    .map((epoch, place) => ({ x: epoch, y: curves[key][place] }))
    .filter(({ y }) => y !== null);
  const dots = points.map((point) => ({
    ...point,
    size: 2.5,
    text: `${run}, epoch ${point.x}: ${of} ${accuracy(point.y)}`,
  }));
  return [{ run, of, name: `${model}, ${thousands(images)} images, ${of}`, ...modelStyle(model), dash, points, dots }];
}
