// Where does each head look? A query pixel on an image, the heads as rings and as maps, through training.

import { meanPlace } from "./contours.js";
import { arrow, choice, copying, html, readout, refill, runLink, saving, select, slider, svg, table } from "./dom.js";
import { accuracy, percent } from "./format.js";
import { epochsOf, headsIn, layersOf, look, shownBy } from "./heads.js";
import { imagePicker, markChosen } from "./picker.js";
import { MARGIN, drawMaps, drawRings } from "./rings.js";

const LEAD =
  "For each pixel of a layer's map, each head averages other pixels. Click a pixel, or focus the image and use the " +
  "arrow keys. Bold rings hold 50% of a head's attention, thin ones 90%: exact ellipses for Gaussian heads, level lines " +
  "for others. A dot shows where the head looks on average. Each map has its own color scale: yellow is its largest probability.";
const NOTES = {
  center:
    "For this run, the page only has the attention of the central pixel, averaged over 100 test images, and not the " +
    "weights.",
  content: "These heads depend on content: the maps are computed for the image that you choose.",
};

/** The section; page has runs, state, load(run), image(run). Null where no run has heads. */
export function querySection(page) {
  const { state } = page;
  const runs = page.runs.filter(shownBy);
  if (!runs.length) return null;
  const controls = html("div", { className: "controls" });
  const picker = html("div", {});
  const rings = svg("svg", { class: "rings", tabindex: 0, role: "application" });
  const maps = svg("svg", { class: "maps", role: "img" });
  const { line, say } = readout();
  const details = html("details", {}, html("summary", {}, "The same as a table"));
  let shown;

  async function update(changed) {
    const run = await page.load(runs.find(({ run: name }) => name === state.values.run) ?? runs[0]);
    shown = whatIsShown(run, state.values, page.image(run));
    if (!changed || changed.has("run")) {
      refill(controls, ...makeControls(runs, shown, state));
      picker.replaceChildren(imagePicker(page, run, "query-image"));
    }
    markChosen(picker, state.values.image);
    drawRings(rings, shown);
    drawMaps(maps, shown);
    const { header, rows } = asTable(shown);
    const title = `Layer ${shown.layer + 1}: where each head looks from the query pixel`;
    details.replaceChildren(details.firstChild, table(title, header, rows));
    say(...inWords(shown));
  }

  const move = (query) => shownBy(shown.run) !== "center" && state.set({ query });
  rings.addEventListener("click", (event) => move(queryAt(rings, event, shown)));
  rings.addEventListener("keydown", (event) => {
    if (!arrow(event)) return;
    event.preventDefault();
    move(stepped(shown, arrow(event)));
  });
  state.onChange((changed) => {
    if (["run", "layer", "epoch", "query", "image", "head"].some((name) => changed.has(name))) update(changed);
  });
  page.begun.push(update());
  return html(
    "section",
    { id: "query" },
    html("h2", {}, "Where does each head look?"),
    html("p", {}, LEAD),
    controls,
    line,
    html("div", { className: "panels" }, html("figure", {}, rings), html("figure", {}, maps)),
    html(
      "div",
      { className: "row" },
      saving("attention", { rings: () => rings, maps: () => maps }, () => asTable(shown)),
      copying(() => shown.run.command, say),
    ),
    picker,
    details,
  );
}

/** All that the figures show: the choices that the run allows, and what its heads do then. */
function whatIsShown(run, { layer: chosenLayer, epoch: chosenEpoch, query: chosenQuery, head: chosenHead }, image) {
  const [height, width] = run.grid;
  const epochs = epochsOf(run);
  const layer = Math.min(chosenLayer, layersOf(run)) - 1;
  const epoch = epochs.includes(chosenEpoch) ? chosenEpoch : epochs.at(-1);
  const fits = shownBy(run) !== "center" && chosenQuery >= 0 && chosenQuery < height * width;
  const query = fits ? chosenQuery : Math.floor(height / 2) * width + Math.floor(width / 2);
  const place = { height, width, query, row: Math.floor(query / width), column: query % width };
  const heads = look(run, layer, epoch, image);
  // Level lines of nine heads that look at single pixels cover each other: ellipses are shown all, others one by one.
  const only = chosenHead >= 0 && chosenHead <= headsIn(run, layer) ? chosenHead : heads.gaussians ? 0 : 1;
  return { run, layer, epoch, image, only, ...place, ...heads };
}

function makeControls(runs, { run, layer, epoch, only }, state) {
  const epochs = epochsOf(run);
  const layers = Array.from({ length: layersOf(run) }, (_, index) => [index + 1, String(index + 1)]);
  const last = `Heads as after the last epoch (${epochs[0]}): only Gaussian heads are recorded after each epoch.`;
  const note = NOTES[shownBy(run)];
  const rings = Array.from({ length: run.heads + 1 }, (_, head) => [head, head ? String(head) : "all"]);
  return [
    select(
      "Run",
      runs.map((each) => [each.run, each.label]),
      run.run,
      (name) => state.set({ run: name }),
    ),
    choice("Layer", "layer", layers, layer + 1, (chosen) => state.set({ layer: chosen })),
    epochs.length > 1
      ? slider(
          "Epoch",
          { min: 0, max: epochs.length - 1 },
          epochs.indexOf(epoch),
          (index) => String(epochs[index]),
          (index) => state.set({ epoch: epochs[index] }),
        )
      : html("p", { className: "note" }, last),
    choice("Rings", "head", rings, only, (head) => state.set({ head })),
    ...(note ? [html("p", { className: "note" }, note)] : []),
  ];
}

function inWords({ run, layer, epoch, row, column, height, width }) {
  const place = `query pixel in row ${row + 1}, column ${column + 1} of ${height} x ${width}`;
  const about = `${run.model}, layer ${layer + 1}, epoch ${epoch}, ${place}. Test accuracy after training: ${accuracy(run.test_acc)} (`;
  return [about, runLink(run), ")."];
}

const bounded = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);

function queryAt(picture, event, { height, width }) {
  const box = picture.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * (width + 2 * MARGIN) - MARGIN;
  const y = ((event.clientY - box.top) / box.height) * (height + 2 * MARGIN) - MARGIN;
  return bounded(y, height) * width + bounded(x, width);
}

const stepped = ({ row, column, height, width }, [down, right]) =>
  bounded(row + down, height) * width + bounded(column + right, width);

function asTable({ maps, gaussians, query, row, column, width }) {
  const header = ["head", "looks most at (row, column)", "with", "mean row shift", "mean column shift"];
  const rows = maps(query).map((map, head) => {
    const largest = map.reduce((best, value, key) => (value > map[best] ? key : best), 0);
    const [i, j] = meanPlace(map, width);
    const mean = Number.isNaN(i) ? ["", ""] : [(i - row).toFixed(2), (j - column).toFixed(2)];
    const center = gaussians?.[head].center.map((value) => value.toFixed(2)) ?? [];
    const where = `${Math.floor(largest / width) + 1}, ${(largest % width) + 1}`;
    return [`${head + 1}`, where, percent(map[largest]), ...mean, ...center];
  });
  return { header: gaussians ? [...header, "center, rows", "center, columns"] : header, rows };
}
