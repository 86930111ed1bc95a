// Numbers as text.

/** A share as a percentage, with about two digits. */
export const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;

/** An accuracy as a percentage. */
export const accuracy = (share) => `${(100 * share).toFixed(2)}%`;

/** A whole number with its thousands apart. */
export const thousands = (count) => count.toLocaleString("en");

/** A small number, such as an error, with two digits; 0 as it is. */
export const scientific = (value) =>
  value === 0 ? "0" : value >= 0.01 ? value.toPrecision(2) : value.toExponential(1);
