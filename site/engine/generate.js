/** From logits to an answer: greedy or sampled, token by token. */

/** The index of the largest number; the first of equal ones, as in PyTorch. @param {Float32Array} logits */
export function argmax(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** Random numbers from 0 to below 1 that a seed repeats (mulberry32). @param {number} seed @returns {() => number} */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * The probability of each token: softmax of logits / temperature, of which top-p keeps the likeliest tokens that
 * together reach `topP`.
 *
 * @param {Float32Array} logits @param {number} temperature above 0 @param {number} [topP] @returns {Float64Array}
 */
export function probabilities(logits, temperature, topP = 1) {
  const largest = logits[argmax(logits)];
  const p = Float64Array.from(logits, (v) => Math.exp((v - largest) / temperature));
  const normalize = () => {
    const total = p.reduce((a, b) => a + b, 0);
    p.forEach((v, i) => (p[i] = v / total));
  };
  normalize();
  if (topP < 1) {
    let reached = 0;
    for (const i of [...p.keys()].sort((a, b) => p[b] - p[a])) {
      if (reached >= topP) p[i] = 0;
      else reached += p[i];
    }
    normalize();
  }
  return p;
}

/** One token: the likeliest at temperature 0, else drawn. */
export function sample(logits, { temperature = 0, topP = 1, draw = Math.random } = {}) {
  if (temperature === 0) return argmax(logits);
  const p = probabilities(logits, temperature, topP);
  let left = draw(), last = 0;
  for (let i = 0; i < p.length; i++) {
    if (p[i] === 0) continue;
    last = i;
    left -= p[i];
    if (left < 0) break;
  }
  return last;
}

/**
 * Reads a prompt and yields the answer's tokens, without the end-of-turn token. While it reads it yields `undefined`,
 * so that whoever runs it can do something else in between, or stop.
 *
 * @param {import("./llama.js").Llama} model @param {number[]} ids @param {import("./llama.js").Cache} cache
 * @param {import("./llama.js").Weighted[]} adapters
 * @param {{maxNewTokens?: number, temperature?: number, topP?: number, draw?: () => number}} [options]
 * @returns {Generator<number | undefined>}
 */
export function* generate(model, ids, cache, adapters, options = {}) {
  const { eos_token_id: end, max_position_embeddings: most } = model.config;
  if (ids.length >= most) throw new Error(`the prompt has ${ids.length} tokens, and the model ${most} positions: shorten it`);
  for (const id of ids.slice(0, -1)) {
    model.step(id, cache, adapters, false);
    yield undefined;
  }
  let token = ids[ids.length - 1];
  for (let n = 0; n < (options.maxNewTokens ?? 40) && cache.position < most; n++) {
    token = sample(model.step(token, cache, adapters), options);
    if (token === end) return;
    yield token;
  }
}
