// The image that everything is computed for: one of the shipped test images, or the reader's own.

import { choice, html } from "./dom.js";
import { photograph, pixelsOf } from "./pictures.js";

export const OWN = -1; // the choice of the reader's own image

/** Radio buttons with the shipped images, and a place for the reader's own image. */
export function imagePicker(page, run, name) {
  const images = page.imagesOf(run);
  if (!images) return html("p", { className: "note" }, "The page has no images of this run's data.");
  const options = images.labels.map((label, index) => {
    const title = `${images.class_names[label]}, test image ${images.places[index]}`;
    return [
      index,
      html("img", { src: photograph(images.one(index), run.image), alt: title, width: 32, height: 32 }),
      title,
    ];
  });
  const input = html("input", {
    type: "file",
    accept: "image/*",
    onchange: () => input.files.length && take(page, run, input.files[0]),
  });
  const own = html(
    "label",
    { className: "own" },
    html("span", {}, "Your own image (drop, paste or choose; it stays in your browser)"),
    input,
  );
  return html(
    "div",
    { className: "picker" },
    choice("Image", name, options, page.state.values.image, (image) => page.state.set({ image }), "thumbnails"),
    own,
  );
}

/** Mark the chosen image in a picker, which another section may have changed; none if it is the reader's own. */
export function markChosen(picker, image) {
  for (const input of picker.querySelectorAll("input[type=radio]")) input.checked = Number(input.value) === image;
}

async function take(page, run, file) {
  try {
    page.setOwn(await pixelsOf(file, run.image));
  } catch {
    page.say(`${file.name || "The file"} is not an image that this browser can read.`);
  }
}

/** Take images that are dropped on the page or pasted into it. */
export function acceptImages(page, currentRun) {
  const first = (files) => [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
  const use = (event, transfer) => {
    const file = first(transfer?.files);
    if (!file) return;
    event.preventDefault();
    take(page, currentRun(), file);
  };
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault(); // or the browser opens it in place of the page
    use(event, event.dataTransfer);
  });
  addEventListener("paste", (event) => use(event, event.clipboardData));
}
