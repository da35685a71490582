/**
 * Several adapters made into one by weights, as PEFT's `add_weighted_adapter` does it; in Python it is
 * utils/lora/combine.py, which says more and names the papers.
 *
 * @typedef {import("./adapters.js").Factors} Factors
 * @typedef {import("./adapters.js").Adapter} Adapter
 */
import { withRank } from "./adapters.js";
import { random } from "./generate.js";

// ------------------------------------------------------------------------------------------ what the ways are made of

/** TIES' first step: the largest entries stay, as many as `density` says; the rest becomes zero. */
export function keepLargest(matrix, density) {
  const sizes = matrix.map(Math.abs).sort(), count = Math.floor(density * matrix.length);
  const smallest = sizes[sizes.length - count] ?? Infinity;
  let equal = count - sizes.filter((size) => size > smallest).length; // of those as large as the smallest, the first stay
  return matrix.map((v) => (Math.abs(v) > smallest || (Math.abs(v) === smallest && equal-- > 0) ? v : 0));
}

/** DARE: each entry stays with probability `density`, and grows by what the others lose. */
export function keepRandom(matrix, density, draw) {
  return matrix.map((v) => (draw() < density ? v / density : 0));
}

/** The weighted sum, entry by entry. @param {Float32Array[]} matrices @param {number[]} weights */
function weightedSum(matrices, weights) {
  return matrices[0].map((_, i) => matrices.reduce((sum, matrix, n) => sum + weights[n] * matrix[i], 0));
}

/** TIES: entry by entry the matrices vote for a sign with their sizes, and the mean is of those that have it. */
function electedMean(matrices, weights) {
  return matrices[0].map((_, i) => {
    const sign = matrices.reduce((sum, matrix) => sum + matrix[i], 0) >= 0 ? 1 : -1;
    let sum = 0, count = 0;
    matrices.forEach((matrix, n) => {
      if (Math.sign(matrix[i]) !== sign) return;
      sum += weights[n] * matrix[i];
      count++;
    });
    return sum / Math.max(count, 1);
  });
}

/** The factors behind each other: their product is the weighted sum of the updates, exactly. */
function cat(factors, weights) {
  const r = factors.reduce((sum, f) => sum + f.r, 0), rows = factors[0].lora_B.length / factors[0].r;
  const lora_A = new Float32Array((factors[0].lora_A.length / factors[0].r) * r), lora_B = new Float32Array(rows * r);
  let begin = 0, column = 0;
  factors.forEach((f, n) => {
    lora_A.set(f.lora_A.map((v) => weights[n] * f.scaling * v), begin);
    for (let i = 0; i < rows; i++) lora_B.set(f.lora_B.subarray(i * f.r, (i + 1) * f.r), i * r + column);
    begin += f.lora_A.length;
    column += f.r;
  });
  return { lora_A, lora_B, r, scaling: 1 };
}

/** The factors merged one by one, each with the root of its weight; the product has cross terms. */
function onFactors(factors, weights, merge) {
  const products = factors.map((f, n) => weights[n] * f.scaling), roots = products.map((p) => Math.sqrt(Math.abs(p)));
  const lora_A = merge(factors.map((f) => f.lora_A), roots.map((root, n) => Math.sign(products[n]) * root));
  return { lora_A, lora_B: merge(factors.map((f) => f.lora_B), roots), r: factors[0].r, scaling: 1 };
}

// --------------------------------------------------------------------------------------------------------------- SVD

function dot(u, v) {
  let sum = 0;
  for (let i = 0; i < u.length; i++) sum += u[i] * v[i];
  return sum;
}

/** Turns two vectors in their plane. */
function turn(u, v, cos, sin) {
  for (let k = 0; k < u.length; k++) [u[k], v[k]] = [cos * u[k] - sin * v[k], sin * u[k] + cos * v[k]];
}

/**
 * Turns the vectors until they are perpendicular (one-sided Jacobi), and does to `also` what it does to them. Their
 * lengths are then the singular values of the matrix whose columns they were.
 */
function makePerpendicular(vectors, also) {
  for (let sweep = 0, turned = true; turned && sweep < 30; sweep++) {
    turned = false;
    for (let i = 0; i < vectors.length; i++) {
      for (let j = i + 1; j < vectors.length; j++) {
        const a = dot(vectors[i], vectors[i]), b = dot(vectors[j], vectors[j]), c = dot(vectors[i], vectors[j]);
        if (Math.abs(c) <= 1e-10 * Math.sqrt(a * b)) continue;
        turned = true;
        const zeta = (b - a) / (2 * c), t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const cos = 1 / Math.sqrt(1 + t * t), sin = cos * t;
        turn(vectors[i], vectors[j], cos, sin);
        turn(also[i], also[j], cos, sin);
      }
    }
  }
}

/** Perpendicular unit vectors Q and the small R of QR: vectors[j] = sum over i of Q[i] * R[j][i] (Gram and Schmidt). */
function orthonormal(vectors) {
  const Q = [], R = vectors.map(() => new Float64Array(vectors.length));
  vectors.forEach((vector, j) => {
    let rest = Float64Array.from(vector);
    for (let twice = 0; twice < 2; twice++) {
      Q.forEach((q, i) => {
        const along = dot(q, rest);
        R[j][i] += along;
        rest = rest.map((x, k) => x - along * q[k]);
      });
    }
    const size = Math.sqrt(dot(rest, rest)), none = size <= 1e-7 * Math.sqrt(dot(vector, vector));
    R[j][j] = none ? 0 : size;
    Q.push(rest.map((x) => (none ? 0 : x / size)));
  });
  return { Q, R };
}

/**
 * The best approximation of rank `r` to an update that is a product already (`f`, of rank k): its SVD, without the
 * large matrix ever being there. lora_B carries the singular values, largest first.
 *
 * @param {Factors} f @param {number} r @returns {Factors & {singularValues: number[]}}
 */
export function truncated(f, r) {
  const ins = f.lora_A.length / f.r, outs = f.lora_B.length / f.r, k = f.r;
  const rowsOfA = Array.from({ length: k }, (_, i) => f.lora_A.subarray(i * ins, (i + 1) * ins));
  const columnsOfB = Array.from({ length: k }, (_, j) => Float64Array.from({ length: outs }, (_, i) => f.scaling * f.lora_B[i * k + j]));
  const a = orthonormal(rowsOfA), b = orthonormal(columnsOfB);
  // B A = Qb (Rb Ra^T) Qa^T: only the small matrix in the middle needs an SVD. Its columns become U * S, `also` V.
  const middle = Array.from({ length: k }, (_, col) => Float64Array.from({ length: k }, (_, row) => a.R.reduce((sum, R, n) => sum + b.R[n][row] * R[col], 0)));
  const V = middle.map((_, i) => Float64Array.from({ length: k }, (_, j) => Number(i === j)));
  makePerpendicular(middle, V);
  const sizes = middle.map((column) => Math.sqrt(dot(column, column)));
  const order = [...sizes.keys()].sort((i, j) => sizes[j] - sizes[i]).slice(0, r);
  const lora_A = new Float32Array(r * ins), lora_B = new Float32Array(outs * r);
  const along = (Q, small, at) => small.reduce((sum, x, n) => sum + x * Q[n][at], 0);
  order.forEach((from, to) => {
    for (let i = 0; i < ins; i++) lora_A[to * ins + i] = along(a.Q, V[from], i);
    for (let i = 0; i < outs; i++) lora_B[i * r + to] = along(b.Q, middle[from], i);
  });
  return { lora_A, lora_B, r, scaling: 1, singularValues: order.map((i) => sizes[i]) };
}

// --------------------------------------------------------------------------------------------------- the combination

/** @typedef {"cat" | "linear" | "svd" | "ties" | "dare_linear" | "dare_ties"} How */

/**
 * One adapter from several. Smaller ranks are filled up with zeros where the factors are summed.
 *
 * @param {Adapter[]} adapters of the same base and with the same layers @param {number[]} weights one for each
 * @param {How} how @param {{density?: number, svdRank?: number, seed?: number}} [options] `svdRank`: by default the
 *   largest rank that comes in @returns {Adapter}
 */
export function combine(adapters, weights, how, { density = 0.5, svdRank, seed = 0 } = {}) {
  const largest = Math.max(...adapters.flatMap((adapter) => Object.values(adapter).map((f) => f.r)));
  const draw = random(seed);
  const keep = { ties: (m) => keepLargest(m, density), dare: (m) => keepRandom(m, density, draw) }[how.split("_")[0]];
  const sum = how.endsWith("ties") ? electedMean : weightedSum;
  const merge = (matrices, factors) => sum(keep && density < 1 ? matrices.map(keep) : matrices, factors);
  const one = {
    cat: (factors) => cat(factors, weights),
    svd: (factors) => truncated(cat(factors, weights), svdRank ?? largest),
  }[how] ?? ((factors) => onFactors(factors, weights, merge));
  const even = how === "cat" || how === "svd" ? adapters : adapters.map((adapter) => withRank(adapter, largest));
  return Object.fromEntries(Object.keys(even[0]).map((name) => [name, one(even.map((adapter) => adapter[name]))]));
}
