/**
 * LoRA adapters as PEFT writes them. llama.js applies them, combine.js makes one of several.
 *
 * @typedef {{lora_A: Float32Array, lora_B: Float32Array, r: number, scaling: number}} Factors
 *   one layer: lora_A is (r, in) and lora_B (out, r), row by row; the update is scaling * lora_B @ lora_A
 * @typedef {Record<string, Factors>} Adapter the factors by the layer's name in the base model
 */
import { readSafetensors } from "./safetensors.js";

/**
 * @param {any} config the contents of adapter_config.json @param {ArrayBuffer} buffer of adapter_model.safetensors
 * @param {string} [name] @returns {Adapter}
 */
export function readAdapter(config, buffer, name = "the adapter") {
  const { r, lora_alpha: alpha, peft_type: type, use_dora: dora, use_rslora: rslora } = config;
  if (type !== "LORA" || dora || rslora) throw new Error(`${name} isn't plain LoRA: no other adapter is read`);
  const adapter = {};
  for (const [key, { shape, data }] of Object.entries(readSafetensors(buffer, name))) {
    const [, layer, matrix] = key.match(/^base_model\.model\.(.*)\.(lora_[AB])\.weight$/) ?? [];
    if (!layer) throw new Error(`${name} holds ${key}, which isn't a matrix of plain LoRA`);
    if (shape[matrix === "lora_A" ? 0 : 1] !== r) throw new Error(`${name} says rank ${r}, and ${key} is ${shape.join(" x ")}`);
    (adapter[layer] ??= { r, scaling: alpha / r })[matrix] = data;
  }
  return adapter;
}

/** Each layer's factors through a function. @param {Adapter} adapter @param {(f: Factors) => Factors} change */
const each = (adapter, change) => Object.fromEntries(Object.entries(adapter).map(([name, f]) => [name, change(f)]));

/** (rows, from) as (rows, to): columns cut off, or filled up with zeros. */
function resized(matrix, from, to) {
  const rows = matrix.length / from, out = new Float32Array(rows * to), kept = Math.min(from, to);
  for (let i = 0; i < rows; i++) out.set(matrix.subarray(i * from, i * from + kept), i * to);
  return out;
}

/**
 * The adapter with factors of another rank: the first `r` terms of its sum of outer products, or zeros behind them,
 * which change nothing. An adapter from an SVD has its largest terms first, so that this is its best approximation.
 *
 * @param {Adapter} adapter @param {number} r @returns {Adapter}
 */
export function withRank(adapter, r) {
  return each(adapter, (f) => {
    const lora_A = new Float32Array((f.lora_A.length / f.r) * r);
    lora_A.set(f.lora_A.subarray(0, lora_A.length));
    return { ...f, r, lora_A, lora_B: resized(f.lora_B, f.r, r) };
  });
}

/**
 * The part of an adapter in some layers, by what their names hold: `[["layers.0", "layers.1"], ["q_proj"]]` is q_proj
 * of the first two blocks.
 *
 * @param {Adapter} adapter @param {string[][]} wanted of each list one must be in the name, between dots
 */
export function inLayers(adapter, wanted) {
  const has = (name, some) => some.some((part) => `.${name}.`.includes(`.${part}.`));
  return Object.fromEntries(Object.entries(adapter).filter(([name]) => wanted.every((some) => has(name, some))));
}
