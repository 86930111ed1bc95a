// The page: its data, the reader's choices, and its sections.

import { unpack, unpackAll } from "./arrays.js";
import { layerAttention } from "./attention.js";
import { setColors } from "./colors.js";
import { claimsSection, curvesSection } from "./curves_view.js";
import { html, placeOf } from "./dom.js";
import { accuracy, thousands } from "./format.js";
import { look, shownBy } from "./heads.js";
import { forward, isLive } from "./network.js";
import { MEASURE_NAMES, likenessSection } from "./likeness_view.js";
import { networkSection } from "./network_view.js";
import { acceptImages, OWN } from "./picker.js";
import { querySection } from "./query.js";
import { makeState, oneOf, real, textLike, whole } from "./state.js";
import { KERNELS } from "./theorem.js";
import { LEAST, MOST, centersField, theoremSection } from "./theorem_view.js";
import { trainingSection } from "./training_view.js";

const data = JSON.parse(document.getElementById("data").textContent);

function makePage() {
  const loaded = new Map();
  const labels = Map.groupBy([...data.runs, ...data.probes], labelOf);
  /** The label of a run, with its name if another one has the same label. */
  const ownLabel = (run) => {
    const label = labelOf(run);
    return new Set(labels.get(label)?.map((other) => other.run)).size > 1 ? `${label}, ${run.run}` : label;
  };
  const runs = data.runs.map((run) => ({ ...run, label: ownLabel(run) }));
  const images = Object.values(data.images);
  const most = Math.max(0, ...images.map(({ labels }) => labels.length - 1));
  const state = makeState({
    run: oneOf(
      runs.map(({ run }) => run),
      "",
    ),
    layer: whole(1, 1000, 4),
    epoch: whole(0, 1e6, -1), // -1: the last
    query: whole(0, 1e6, -1),
    image: whole(0, most, 0),
    head: whole(0, 1000, -1), // whose rings are drawn, from 1; 0: of all; -1: chosen by the run's kind
    probe: oneOf(
      data.probes.map(({ run }) => run),
      "",
    ),
    measure: oneOf(MEASURE_NAMES, "explained"),
    protocol: oneOf(
      (data.protocols ?? []).map(({ title }) => title),
      "",
    ),
    budget: textLike(/^\d+ \d+( [\w-]+){3}$/), // the runs whose time is drawn: images, epochs, scale, recipe, precision
    network: oneOf(
      runs.map(({ run }) => run),
      "",
    ),
    heads: textLike(/^[.ot]+$/),
    hidden: textLike(/^\d+(\.\d+)*$/),
    kernel: oneOf(Object.keys(KERNELS), "edges"),
    alpha: real(LEAST, MOST, 2),
    border: oneOf(["padded", "image"], "padded"),
    centers: centersField,
  });
  let own;
  return {
    data,
    runs,
    state,
    begun: [], // promises of what the sections show first
    /** A run with its arrays unpacked, once. */
    load(run) {
      if (!loaded.has(run)) loaded.set(run, unpackAll(run));
      return loaded.get(run);
    },
    labelOf: ownLabel,
    imagesOf: ({ data_hash: hash }) => data.images[hash],
    /** {pixels, key, name} of the image that is chosen, as this run sees it. */
    image(run) {
      const set = this.imagesOf(run);
      if (state.values.image === OWN && own?.pixels.length === run.image.reduce((a, b) => a * b)) return own;
      if (!set) return undefined;
      const index = Math.min(Math.max(state.values.image, 0), set.labels.length - 1);
      return {
        pixels: set.one(index),
        key: `${run.data_hash} ${index}`,
        name: set.class_names[set.labels[index]],
        label: set.labels[index],
      };
    },
    setOwn(pixels) {
      own = { pixels, key: `own ${Date.now()}`, name: "your image" };
      state.values.image = undefined; // so that a second image from the reader counts as a change
      state.set({ image: OWN });
    },
    say: (text) => document.getElementById("message").replaceChildren(text),
  };
}

function labelOf({ model, scale, train_images: images, test_acc: share }) {
  return `${model}, ${scale} scale, ${thousands(images)} images: ${accuracy(share)}`;
}

async function start() {
  for (const set of Object.values(data.images)) {
    const { shape, values } = await unpack(set.pixels);
    const size = shape[1] * shape[2] * shape[3];
    set.one = (index) => values.subarray(index * size, (index + 1) * size);
  }
  const page = makePage();
  setColors(data.colors);
  const make = [querySection, theoremSection, likenessSection, networkSection, claimsSection, curvesSection, trainingSection];
  const sections = make.map((section) => section(page)).filter(Boolean);
  document
    .getElementById("main")
    .append(...sections, html("p", { id: "message", role: "status", "aria-live": "polite" }));
  document
    .getElementById("nav")
    .append(
      ...sections.map((section) =>
        html(
          "li",
          {},
          html(
            "a",
            { href: `#${section.id}`, onclick: (event) => jump(event, section) },
            section.querySelector("h2").textContent,
          ),
        ),
      ),
    );
  document.querySelector(".skip").addEventListener("click", (event) => jump(event, sections[0]));
  if (data.claims) document.querySelector("header p").append(...linksToPages(data.claims.page));
  document.getElementById("made").append(`Made by ${data.made}.`);
  acceptImages(page, () => page.runs.find(({ run }) => run === page.state.values.run) ?? page.runs[0]);
  // For the console: await attnconv.load(attnconv.runs[0]), attnconv.forward(run, pixels), attnconv.look(run, layer, epoch, image).
  globalThis.attnconv = Object.assign(page, { forward, look, shownBy, isLive, layerAttention });
  await Promise.all(page.begun);
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
  addEventListener("hashchange", follow);
  document.documentElement.dataset.ready = "yes";
}

/** " Read the README and the claims.", with links. */
function linksToPages(claims) {
  const readme = claims.replace(/results\/[^/]*$/, "README.md");
  const link = (place, text) => html("a", { href: placeOf({ link: place }) }, text);
  return [" Read the ", link(readme, "README"), " and the ", link(claims, "claims"), "."];
}

/** Scroll to the section that the address names, or show the choices that it holds. */
function follow() {
  const section = document.getElementById(location.hash.slice(1));
  if (section) section.scrollIntoView();
  else location.reload();
}

/** Scroll without the address, which holds the reader's choices. */
function jump(event, section) {
  event.preventDefault();
  section.setAttribute("tabindex", -1);
  section.focus({ preventScroll: true });
  section.scrollIntoView();
}

start().catch((error) => {
  const text = `This page needs a browser of 2024 or later. The error: ${error.message}`;
  document.getElementById("main").append(html("p", { role: "alert" }, text));
  throw error;
});
