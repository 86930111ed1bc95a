// What the reader has chosen, kept in the address of the page, so that a link shows the same.

/** Make a store of choices: fields name -> {default, read(text) -> value or undefined}. */
export function makeState(fields) {
  const listeners = [];
  const values = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.default]));
  const given = new URLSearchParams(location.hash.replace(/^#\??/, ""));
  for (const [name, field] of Object.entries(fields)) {
    const value = given.has(name) ? field.read(given.get(name)) : undefined;
    if (value !== undefined) values[name] = value;
  }
  const write = () => {
    const changed = Object.entries(values).filter(([name, value]) => String(value) !== String(fields[name].default));
    const text = new URLSearchParams(changed.map(([name, value]) => [name, String(value)])).toString();
    history.replaceState(null, "", text ? `#${text}` : "#");
  };
  return {
    values,
    /** Change some choices and let every listener know which. */
    set(changes) {
      const names = Object.keys(changes).filter((name) => String(values[name]) !== String(changes[name]));
      if (!names.length) return;
      Object.assign(values, changes);
      write();
      for (const listener of listeners) listener(new Set(names));
    },
    onChange: (listener) => listeners.push(listener),
  };
}

/** A whole number between two bounds. */
export const whole = (low, high, fallback) => ({
  default: fallback,
  read: (text) => (/^\d+$/.test(text) && low <= Number(text) && Number(text) <= high ? Number(text) : undefined),
});

/** A number between two bounds. */
export const real = (low, high, fallback) => ({
  default: fallback,
  read: (text) => (text !== "" && low <= Number(text) && Number(text) <= high ? Number(text) : undefined),
});

/** One of some texts. */
export const oneOf = (options, fallback) => ({
  default: fallback,
  read: (text) => (options.includes(text) ? text : undefined),
});

/** A text of some form. */
export const textLike = (form, fallback = "") => ({
  default: fallback,
  read: (text) => (form.test(text) ? text : undefined),
});
