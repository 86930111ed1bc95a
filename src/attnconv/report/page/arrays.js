// Typed arrays as they travel inside the page: base64 of deflated bytes.

const VIEWS = { float32: Float32Array, uint8: Uint8Array, float16: Uint16Array };

/** Whether a value of the page's data is a packed array. */
const isPacked = (value) => typeof value?.deflate === "string";

/** Unpack {dtype, shape, deflate} to {shape, values}; float16 becomes a Float32Array. */
export async function unpack({ dtype, shape, deflate }) {
  const bytes = Uint8Array.from(atob(deflate), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new VIEWS[dtype](await new Response(stream).arrayBuffer());
  return { shape, values: dtype === "float16" ? fromHalf(values) : values };
}

/** Copy a value of the page's data with every packed array inside it unpacked. */
export async function unpackAll(value) {
  if (isPacked(value)) return unpack(value);
  if (Array.isArray(value)) return Promise.all(value.map(unpackAll));
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(async ([key, item]) => [key, await unpackAll(item)]);
  return Object.fromEntries(await Promise.all(entries));
}

/** Convert the bits of float16 values to a Float32Array. */
export function fromHalf(bits) {
  return Float32Array.from(bits, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}
