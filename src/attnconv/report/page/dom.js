// Elements, in HTML and SVG, and what every figure offers: save as SVG, save as CSV, copy.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean" || ["value", "htmlFor", "className"].includes(name)) node[name] = value;
    else if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; attributes whose names begin with "on" are listeners. */
export const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. Colors are attributes, not styles, so that a saved file looks the same. */
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** A labeled select: options are [value, text] pairs. */
export function select(label, options, value, onchange) {
  const items = options.map(([key, text]) => html("option", { value: key, selected: key === value }, text));
  return html(
    "label",
    { className: "control" },
    html("span", {}, label),
    html("select", { onchange: (event) => onchange(event.target.value) }, items),
  );
}

/** A labeled slider with its value as text. */
export function slider(label, { min, max, step = 1 }, value, text, oninput) {
  const output = html("output", {}, text(value));
  const input = html("input", {
    type: "range",
    min,
    max,
    step,
    value: String(value),
    "aria-valuetext": text(value),
    oninput: () => {
      const now = Number(input.value);
      output.textContent = text(now);
      input.setAttribute("aria-valuetext", text(now));
      oninput(now);
    },
  });
  return html("label", { className: "control slider" }, html("span", {}, label), input, output);
}

/** A group of radio buttons, shown as tabs; options are [value, text or element, name] triples. */
export function choice(legend, name, options, value, onchange, className = "tabs") {
  return html(
    "fieldset",
    { className },
    html("legend", {}, legend),
    options.map(([key, content, title]) =>
      html(
        "label",
        { title },
        html("input", {
          type: "radio",
          name,
          value: String(key),
          checked: key === value,
          onchange: () => onchange(key),
        }),
        html("span", {}, content),
      ),
    ),
  );
}

export const button = (text, onclick, attributes = {}) =>
  html("button", { type: "button", onclick, ...attributes }, text);

/** A table; cells are text or elements, the first of each row heads it. */
export function table(caption, header, rows) {
  return html(
    "div",
    { className: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    html(
      "table",
      {},
      html("caption", {}, caption),
      html(
        "thead",
        {},
        html(
          "tr",
          {},
          header.map((cell) => html("th", { scope: "col" }, cell)),
        ),
      ),
      html(
        "tbody",
        {},
        rows.map((row) =>
          html(
            "tr",
            {},
            row.map((cell, index) => html(index ? "td" : "th", index ? {} : { scope: "row" }, cell)),
          ),
        ),
      ),
    ),
  );
}

const link = (run, text) => html("a", { href: placeOf(run) }, text);

/** Where a run folder is: next to the page, or in the repository that GitHub Pages serves it from. */
export function placeOf({ link: place }) {
  const [owner, domain] = location.hostname.split(/\.(.*)/);
  const [, repository] = location.pathname.split("/");
  if (domain !== "github.io" || !place.startsWith("../")) return place;
  return `https://github.com/${owner}/${repository}/tree/HEAD/${place.slice(3)}`;
}

/** A link to a run's folder, by its name. */
export const runLink = (run) => link(run, run.run);

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  html("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** An SVG as a file: with the page's colors of the moment, and a background. */
export function svgText(picture) {
  const copy = picture.cloneNode(true);
  const style = getComputedStyle(picture);
  const [x, y, width, height] = picture.getAttribute("viewBox").split(" ");
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("color", style.color);
  copy.setAttribute("font-family", "sans-serif");
  copy.prepend(svg("rect", { x, y, width, height, fill: getComputedStyle(document.body).backgroundColor }));
  return new XMLSerializer().serializeToString(copy);
}

const quoted = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

/** Rows as CSV text; a cell that is an element counts as its text. */
export const csvText = (header, rows) =>
  [header, ...rows]
    .map((row) => row.map((cell) => quoted(String(cell?.textContent ?? cell ?? ""))).join(","))
    .join("\n") + "\n";

/**
 * Buttons that save a figure as it stands.
 * @param pictures the SVG of each part, by what it is called; a figure of one part has one without a name: {"": svg}
 * @param rows () -> {header, rows}
 */
export function saving(name, pictures, rows) {
  const called = (text) => ({ "aria-label": `${text}: ${name}` });
  const ofPart = ([part, picture]) => {
    const text = `Save ${part && `${part} as `}SVG`;
    const file = `${[name, part].filter(Boolean).join("-")}.svg`;
    return button(text, () => download(file, "image/svg+xml", svgText(picture())), called(text));
  };
  const asCsv = () => {
    const { header, rows: body } = rows();
    download(`${name}.csv`, "text/csv", csvText(header, body));
  };
  return [...Object.entries(pictures).map(ofPart), button("Save CSV", asCsv, called("Save CSV"))];
}

/** A button that copies a command, and says so. */
export function copying(command, say) {
  return button("Copy command", async () => {
    try {
      await navigator.clipboard.writeText(command());
      say(`Copied: ${command()}`);
    } catch {
      say(`The browser does not allow copying; the command is: ${command()}`);
    }
  });
}

/** A line that screen readers read when it changes. */
export function readout() {
  const line = html("p", { className: "readout", role: "status", "aria-live": "polite" });
  return { line, say: (...content) => line.replaceChildren(...content.flat()) };
}

const DIRECTIONS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

/** Rows and columns that an arrow key moves by; undefined for other keys. */
export const arrow = (event) => DIRECTIONS[event.key];

/** Make rows of elements one tab stop, in which the arrow keys move the focus; in one row, all of them move along it. */
export function roving(container, rows) {
  const elements = rows.flat();
  elements.forEach((element, index) => element.setAttribute("tabindex", index ? -1 : 0));
  container.addEventListener("focusin", ({ target }) => {
    if (elements.includes(target)) elements.forEach((each) => each.setAttribute("tabindex", each === target ? 0 : -1));
  });
  container.addEventListener("keydown", (event) => {
    const row = rows.findIndex((each) => each.includes(document.activeElement));
    if (!arrow(event) || row < 0) return;
    event.preventDefault();
    const column = rows[row].indexOf(document.activeElement);
    const [down, right] = arrow(event);
    const next = rows.length === 1 ? rows[0][column + down + right] : rows[row + down]?.[column + right];
    next?.focus();
  });
}

/** Replace the controls in a container; the one that had the focus keeps it, by its place. */
export function refill(container, ...nodes) {
  const fields = () => [...container.querySelectorAll("select, input, button")];
  const focused = fields().indexOf(document.activeElement);
  container.replaceChildren(...nodes);
  if (focused >= 0) fields()[focused]?.focus();
}
