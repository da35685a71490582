/**
 * NF4, MXFP4 and NVFP4 for one weight: what utils/quant does for a tensor, bit for bit (tests/site/test_ruler.py).
 *
 * All three are a list of 16 values, a scale that a block of neighbours shares, and the nearest value times the scale.
 * They differ in the list, in the block and in what a scale is stored in. Python computes in float32, so each step here
 * is rounded to one too, by Math.fround.
 */
const f32 = Math.fround;

const NF4 = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
  -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
  0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
].map(f32);
/** E2M1: a sign, two bits of exponent, one of fraction. Codes 8 to 15 are the same with a minus, so there are two zeros. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const E2M1_END = 6;
/** E4M3 without its sign: 126 is 448, the largest; 127 is nan. */
const E4M3 = Array.from({ length: 127 }, (_, code) => {
  const [exponent, fraction] = [code >> 3, (code & 7) / 8];
  return exponent ? (1 + fraction) * 2 ** (exponent - 7) : fraction * 2 ** -6;
});
const E4M3_END = 448, E4M3_SMALLEST_SCALE = 2 ** -6;

/** @typedef {"floor" | "even" | "up"} Rounding how the exponent of MXFP4's scale is made */
/** @typedef {{code: number, entry: number, value: number, scale: number, marks: number[], cut: boolean}} Stored
 *   The code, the value on the list that it stands for, that times the scale; all values of the ruler, sorted; whether
 *   the weight lies past the ruler's end. */
/** @typedef {{weight: number, block: number, tensor: number, rounding?: Rounding}} Weight
 *   A weight, the largest absolute value in its block, and the largest in its tensor, which only NVFP4 asks. */

/** @type {Record<string, {text: string, block: number, bits: number, scale: string, store: (weight: Weight) => Stored}>} */
export const FORMATS = {
  nf4: { text: "NF4", block: 64, bits: 4 + 32 / 64, scale: "a float32", store: nf4 },
  mxfp4: { text: "MXFP4", block: 32, bits: 4 + 8 / 32, scale: "a power of two (E8M0)", store: mxfp4 },
  nvfp4: { text: "NVFP4", block: 16, bits: 4 + 8 / 16, scale: "an 8-bit float (E4M3) times the tensor's float32", store: nvfp4 },
};

/** The code of the nearest entry of a sorted list; exactly halfway the lower one. */
function nearestOf(list, value) {
  let code = 0;
  while (code < list.length - 1 && value > f32(f32(list[code] + list[code + 1]) / 2)) code++;
  return code;
}

/** As IEEE 754 rounds: exactly halfway the even code. `list` has the values from 0 up. */
function nearestEven(list, size) {
  let code = 0;
  for (; code < list.length - 1; code++) {
    const middle = (list[code] + list[code + 1]) / 2;
    if (size < middle || (size === middle && code % 2 === 0)) break;
  }
  return code;
}

/** @param {Weight} own @returns {Stored} */
function nf4({ weight, block }) {
  const scale = f32(block);
  const code = nearestOf(NF4, Math.min(1, Math.max(-1, f32(f32(weight) * f32(1 / scale)))));
  return { code, entry: NF4[code], value: f32(NF4[code] * scale), scale, marks: NF4.map((entry) => f32(entry * scale)), cut: false };
}

/** @param {Weight} own @returns {Stored} */
function mxfp4({ weight, block, rounding = "floor" }) {
  const scale = 2 ** Math.max(-126, Math.min(127, sharedExponent(f32(block), rounding)));
  return small(f32(f32(weight) / scale), scale);
}

/** The exponent e of the largest power of two 2^e that isn't larger than `size`. */
function exponentOf(size) {
  const near = Math.floor(Math.log2(size));
  return 2 ** near > size ? near - 1 : 2 ** (near + 1) <= size ? near + 1 : near;
}

/** OCP's specification rounds the scale down, "floor"; "even" and "up" let less be cut off. */
function sharedExponent(biggest, rounding) {
  if (rounding === "up") {
    const quotient = f32(biggest / E2M1_END), exponent = exponentOf(quotient);
    return exponent + Number(2 ** exponent !== quotient);
  }
  const exponent = exponentOf(biggest);
  const carried = rounding === "even" && biggest / 2 ** exponent >= 1.75;
  return exponent + Number(carried) - 2; // 4, the power of two in the list's end, is 2^2
}

/** @param {Weight} own @returns {Stored} */
function nvfp4({ weight, block, tensor }) {
  const tensorScale = f32(f32(tensor) / (E4M3_END * E2M1_END));
  const wanted = f32(f32(f32(block) / E2M1_END) / tensorScale);
  const blockScale = E4M3[nearestEven(E4M3, Math.min(E4M3_END, Math.max(E4M3_SMALLEST_SCALE, wanted)))];
  const inverse = f32(f32(1 / tensorScale) / blockScale);
  return small(f32(f32(weight) * inverse), f32(blockScale * tensorScale));
}

/** A scaled weight as E2M1. @returns {Stored} */
function small(scaled, scale) {
  const code = nearestEven(E2M1, Math.abs(scaled)), minus = scaled < 0 || Object.is(scaled, -0);
  const marks = [...E2M1.map((entry) => f32(-entry * scale)).reverse().slice(0, -1), ...E2M1.map((entry) => f32(entry * scale))];
  const entry = minus ? -E2M1[code] : E2M1[code];
  return { code: code + (minus ? 8 : 0), entry, value: f32(entry * scale), scale, marks, cut: Math.abs(scaled) > E2M1_END };
}
