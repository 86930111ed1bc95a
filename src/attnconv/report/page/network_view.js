// The live network: what it says of an image, with patches hidden, heads switched off or replaced by taps of a kernel.

import { MODES, best, countRight, hide, readHidden, readModes, switches, tapsOf, writeModes } from "./changes.js";
import { arrow, button, copying, html, readout, refill, roving, runLink, saving, select, svg, table } from "./dom.js";
import { accuracy, percent } from "./format.js";
import { forward, isLive, probabilities } from "./network.js";
import { imagePicker, markChosen } from "./picker.js";
import { photograph } from "./pictures.js";

const LEAD =
  "The trained network runs in your browser, in plain JavaScript. Choose a test image or drop your own. Click its " +
  "patches to hide them. Click a head to switch it off, and again to replace it with the nearest tap of a 3 x 3 " +
  "convolution. What does the prediction need?";
const BARS = "Blue: current network. Orange: as trained, nothing hidden. The true class is in bold.";
const RELATED = ["network", "image", "heads", "hidden"];

/** The section; null where the page has no weights. */
export function networkSection(page) {
  const { state } = page;
  const runs = page.runs.filter((run) => isLive(run) && page.imagesOf(run));
  if (!runs.length) return null;
  const photo = svg("svg", { class: "rings", tabindex: 0, role: "application" });
  const bars = svg("svg", { role: "img" });
  const [controls, heads, picker] = ["controls", "heads", ""].map((className) => html("div", { className }));
  const details = html("details", {}, html("summary", {}, "The same as a table"));
  const [outcome, count] = [readout(), readout()];
  let now; // {run, image, modes, hidden, cursor, trained, changed}

  async function update(changed) {
    const run = await page.load(runs.find(({ run: name }) => name === state.values.network) ?? runs[0]);
    const image = page.image(run);
    const modes = readModes(state.values.heads, run);
    const hidden = readHidden(state.values.hidden, run);
    const trained = probabilities(forward(run, image.pixels).logits);
    const pixels = hide(image.pixels, hidden, run);
    const taps = modes.some((layer) => layer.includes("3x3")) ? tapsOf(run, image) : [];
    const altered = probabilities(forward(run, pixels, switches(modes, taps)).logits);
    now = {
      run,
      image,
      pixels,
      modes,
      taps,
      hidden,
      cursor: now?.cursor ?? 0,
      trained,
      altered,
      names: page.imagesOf(run).class_names,
    };
    if (!changed || changed.has("network")) {
      refill(controls, ...makeControls(runs, run, state));
      picker.replaceChildren(imagePicker(page, run, "network-image"));
      heads.replaceChildren(headButtons(run, state));
    }
    markChosen(picker, state.values.image);
    count.say("");
    markHeads(heads, modes);
    drawPhoto(photo, now);
    drawBars(bars, now);
    const { header, rows } = asTable(now);
    details.replaceChildren(details.firstChild, table("Probability of each class", header, rows));
    outcome.say(...inWords(now));
  }

  const toggle = (patch) => {
    const hidden = new Set(now.hidden);
    if (!hidden.delete(patch)) hidden.add(patch);
    state.set({ hidden: [...hidden].toSorted((a, b) => a - b).join(".") });
  };
  listen(photo, () => now, toggle);
  state.onChange((changed) => {
    if (RELATED.some((name) => changed.has(name))) update(changed);
  });
  page.begun.push(update());
  const reset = () => state.set({ heads: "", hidden: "" });
  return html(
    "section",
    { id: "network" },
    html("h2", {}, "Switch heads off, and watch"),
    html("p", {}, LEAD),
    controls,
    outcome.line,
    html(
      "div",
      { className: "panels" },
      html("figure", {}, photo),
      html("figure", {}, bars, html("figcaption", { className: "note" }, BARS)),
    ),
    heads,
    html(
      "div",
      { className: "row" },
      button("As trained", reset),
      button("Make all heads 3 x 3 taps", () => state.set({ heads: "t".repeat(now.modes.flat().length) })),
      button("Run all images of the page", () => countRight(page, now, count.say)),
      saving("prediction", { image: () => photo, classes: () => bars }, () => asTable(now)),
      copying(() => now.run.command, outcome.say),
    ),
    count.line,
    picker,
    details,
  );
}

function makeControls(runs, run, state) {
  const chosen = (name) => state.set({ network: name, heads: "", hidden: "" });
  const options = runs.map((each) => [each.run, each.label]);
  return [select("Network", options, run.run, chosen)];
}

function headButtons(run, state) {
  const rows = readModes("", run).map((layer, index) => {
    const of = layer.map((_, head) =>
      button("", () => {
        const modes = readModes(state.values.heads, run);
        modes[index][head] = MODES[(MODES.indexOf(modes[index][head]) + 1) % MODES.length];
        state.set({ heads: writeModes(modes) });
      }),
    );
    return html(
      "div",
      { className: "layer", role: "group", "aria-label": `Layer ${index + 1}` },
      html("span", {}, `layer ${index + 1}`),
      of,
    );
  });
  const container = html("div", { role: "group", "aria-label": "Heads: on, off, or a tap of a 3 x 3 kernel" }, rows);
  const buttons = rows.map((row) => [...row.querySelectorAll("button")]);
  roving(container, buttons);
  return container;
}

function markHeads(container, modes) {
  const buttons = [...container.querySelectorAll("button")];
  const places = modes.flatMap((layer, index) => layer.map((_, head) => `layer ${index + 1}, head ${head + 1}`));
  modes.flat().forEach((mode, index) => {
    buttons[index].textContent = mode;
    buttons[index].dataset.mode = mode;
    buttons[index].setAttribute("aria-label", `${places[index]}: ${mode}`);
  });
}

function listen(photo, now, toggle) {
  photo.addEventListener("click", (event) => {
    const { run } = now();
    const [height, width] = run.grid;
    const box = photo.getBoundingClientRect();
    const row = Math.min(Math.floor(((event.clientY - box.top) / box.height) * height), height - 1);
    now().cursor = row * width + Math.min(Math.floor(((event.clientX - box.left) / box.width) * width), width - 1);
    toggle(now().cursor);
  });
  photo.addEventListener("keydown", (event) => {
    const [height, width] = now().run.grid;
    const { cursor } = now();
    const step = arrow(event);
    if (!step && event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    if (!step) return toggle(cursor);
    const row = Math.min(Math.max(Math.floor(cursor / width) + step[0], 0), height - 1);
    now().cursor = row * width + Math.min(Math.max((cursor % width) + step[1], 0), width - 1);
    return drawPhoto(photo, now());
  });
}

function drawPhoto(picture, { run, pixels, hidden, cursor, image }) {
  const [height, width] = run.grid;
  const [row, column] = [Math.floor(cursor / width), cursor % width];
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const place = `row ${row + 1}, column ${column + 1}${hidden.has(cursor) ? ", hidden" : ""}`;
  const keys = "arrow keys move, Enter hides or shows";
  picture.setAttribute("aria-label", `${image.name}; patch in ${place}; ${keys}`);
  const pixelated = { width, height, preserveAspectRatio: "none", "image-rendering": "pixelated" };
  const frame = { width: 0.94, height: 0.94, fill: "none", "stroke-width": 0.06 };
  picture.replaceChildren(
    svg("image", { href: photograph(pixels, run.image), ...pixelated }),
    ...[...hidden].map((patch) =>
      svg("rect", { x: (patch % width) + 0.03, y: Math.floor(patch / width) + 0.03, ...frame, stroke: "#fff" }),
    ),
    svg("rect", { x: column + 0.03, y: row + 0.03, ...frame, stroke: "#000", "stroke-dasharray": "0.12 0.08" }),
  );
}

function drawBars(picture, { trained, altered, names, image }) {
  const [left, line, width] = [96, 24, 400];
  picture.setAttribute("viewBox", `0 0 ${width} ${names.length * line}`);
  picture.setAttribute(
    "aria-label",
    "Probability of each class, as trained and as changed; the table below has the numbers",
  );
  const length = (share) => share * (width - left - 48);
  const text = { "font-size": 13, fill: "currentColor" };
  picture.replaceChildren(
    ...names.map((name, label) => {
      const y = label * line;
      const shown = percent(altered[label]);
      return svg(
        "g",
        {},
        svg(
          "text",
          { ...text, x: left - 8, y: y + 16, "text-anchor": "end", "font-weight": label === image.label ? 700 : 400 },
          name,
        ),
        svg("rect", { x: left, y: y + 4, width: length(altered[label]), height: line - 8, fill: "#0072b2" }),
        svg("line", {
          x1: left + length(trained[label]),
          x2: left + length(trained[label]),
          y1: y + 1,
          y2: y + line - 1,
          stroke: "#d55e00",
          "stroke-width": 3,
        }),
        svg("text", { ...text, x: left + length(Math.max(altered[label], trained[label])) + 6, y: y + 16 }, shown),
      );
    }),
  );
}

function inWords({ run, trained, altered, names, image, modes, hidden }) {
  const says = (shares) => `${names[best(shares)]} (${percent(Math.max(...shares))})`;
  const changes = modes.flat().filter((mode) => mode !== "on").length;
  const patches = `${hidden.size} ${hidden.size === 1 ? "patch" : "patches"}`;
  const about = `${changes} of ${modes.flat().length} heads changed, ${patches} hidden`;
  const truth = image.label === undefined ? "" : ` True class: ${names[image.label]}.`;
  const text = `Prediction: ${says(altered)}; as trained: ${says(trained)}.${truth} ${about}. `;
  return [text, `Accuracy on the whole test set: ${accuracy(run.test_acc)} (`, runLink(run), ")."];
}

const asTable = ({ names, trained, altered }) => ({
  header: ["class", "now", "as trained"],
  rows: names.map((name, label) => [name, altered[label].toFixed(4), trained[label].toFixed(4)]),
});
