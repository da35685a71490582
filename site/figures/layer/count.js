/** What a LoRA layer holds and computes, as utils/lora/lowrank.py counts it; and layers of real models. */

/** @typedef {{dIn: number, dOut: number, r: number, alpha: number}} Layer W0 is (dOut, dIn), A is (r, dIn), B is (dOut, r) */

export const BYTES = 2; // of a number in bf16

/** @param {Layer} layer */
export function counted({ dIn, dOut, r, alpha }) {
  const weight = dIn * dOut, a = r * dIn, b = dOut * r;
  return {
    weight, a, b, lora: a + b,
    /** how many times fewer numbers A and B have than W0 */
    saving: weight / (a + b),
    /** the largest rank at which they have fewer; 0 when there is none */
    breakEven: Math.floor((weight - 1) / (dIn + dOut)),
    /** of one token: W0 x, and what B(A x) and its addition cost besides */
    flops: { weight: 2 * weight, lora: 2 * (a + b) + dOut },
    bytes: { weight: BYTES * weight, lora: BYTES * (a + b) },
    scale: alpha / r,
    rsScale: alpha / Math.sqrt(r),
  };
}

/** Layers of real models, `says` why the shape is what it is. */
export const LAYERS = {
  tiny: { text: "tiny Llama q_proj", model: "tiny", module: "q_proj", dIn: 192, dOut: 192, says: "The course's tiny Llama: 6 heads of 32 make 192." },
  q: { text: "Llama-2-7B q_proj", model: "Llama-2-7B", module: "q_proj", dIn: 4096, dOut: 4096, says: "Llama-2-7B: 32 heads of 128 make 4,096, the hidden size again." },
  down: { text: "Llama-2-7B down_proj", model: "Llama-2-7B", module: "down_proj", dIn: 11008, dOut: 4096, says: "Llama-2-7B's MLP goes up to 11,008 and comes down to 4,096 here." },
  v: { text: "Llama-3.1-8B v_proj", model: "Llama-3.1-8B", module: "v_proj", dIn: 4096, dOut: 1024, says: "Llama-3.1-8B has grouped-query attention: 8 heads of 128 for keys and values beside 32 for queries, so 1,024 come out." },
};
