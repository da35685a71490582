/**
 * LoRA training of the frozen Llama: the loss of whole answers, its gradients down to lora_A and lora_B, AdamW.
 *
 * Sequences are computed one by one, without padding, and their gradients add up. What is computed is put on a tape as
 * the function that takes a result's gradient back to what it was made of; the tape is run backwards. Losses, schedule
 * and clipping are those of utils/train/loop.py.
 *
 * @typedef {import("./adapters.js").Adapter} Adapter
 * @typedef {{prompt: number[], answer: number[]}} Row token ids; the answer ends with the end-of-turn token
 * @typedef {{data: Float32Array, grad?: Float32Array, rows: number, cols: number}} Value `grad` only where one is needed
 * @typedef {{data: Float32Array, grad: Float32Array, m: Float32Array, v: Float32Array}} Parameter
 */
import { random } from "./generate.js";
import { Space } from "./matmul.js";

const WARMUP = 10, CLIP = 1, BETAS = [0.9, 0.999], EPS = 1e-8;
/** Numbers that there is room for beside the weights: the factors and a sequence. */
const ROOM = 12e6;

/** What the peak learning rate is multiplied by at `step` of `steps`: up along a line in ten steps, then down to zero. */
export const rateFactor = (step, steps) => Math.min(1, (step + 1) / WARMUP) * (1 - step / steps);

/** (rows, cols) as (cols, rows). @param {Float32Array} from @param {Float32Array} to */
function transpose(from, to, rows, cols) {
  for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) to[j * rows + i] = from[i * cols + j];
}

function scale(data, factor) {
  for (let i = 0; i < data.length; i++) data[i] *= factor;
}

function addTo(sum, other) {
  for (let i = 0; i < sum.length; i++) sum[i] += other[i];
}

export class Trainer {
  /**
   * @param {import("./llama.js").Llama} model stays as it is
   * @param {{r: number, alpha: number, lr: number, steps: number, seed?: number}} options
   * @param {Space} [space] that of an earlier training, which is over
   */
  constructor(model, { r, alpha, lr, steps, seed = 0 }, space = undefined) {
    Object.assign(this, { model, config: model.config, r, lr, steps, scaling: alpha / r, step: 0 });
    const names = Object.keys(model.weights).filter((key) => key.endsWith("_proj.weight")).map((key) => key.replace(/\.weight$/, "")).sort();
    this.padded = 4 * Math.ceil(r / 4); // the product wants fours; the rows that are too many stay zero
    this.space = space ?? new Space(2 * Object.values(model.weights).reduce((sum, { data }) => sum + data.length, 0) + ROOM);
    this.space.free(0);
    this.head = this.config.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
    /** The frozen matrices (out, in) and their transposes: forward needs the one, backward the other. */
    this.frozen = Object.fromEntries([...names, this.head].map((name) => {
      const { data, shape: [outs, ins] } = model.weights[`${name}.weight`];
      const W = this.space.floats(data.length), Wt = this.space.floats(data.length);
      W.set(data);
      transpose(data, Wt, outs, ins);
      return [name, { W, Wt, ins, outs }];
    }));
    const draw = random(seed);
    /** lora_A (r, in), lora_B transposed (r, out), and their transposes; lora_B begins at zero. */
    this.factors = Object.fromEntries(names.map((name) => {
      const { ins, outs } = this.frozen[name], A = this.parameter(ins), Bt = this.parameter(outs);
      for (let i = 0; i < r * ins; i++) A.data[i] = (2 * draw() - 1) / Math.sqrt(ins);
      return [name, { A, Bt, At: this.space.floats(A.data.length), B: this.space.floats(Bt.data.length) }];
    }));
    this.parameters = Object.values(this.factors).flatMap(({ A, Bt }) => [A, Bt]);
    this.turnFactors();
    this.mark = this.space.taken;
    /** @type {(() => void)[]} */
    this.tape = [];
  }

  /** @returns {Parameter} */
  parameter(cols) {
    const [data, grad, m, v] = Array.from({ length: 4 }, () => this.space.floats(this.padded * cols));
    return { data, grad, m, v };
  }

  turnFactors() {
    for (const [name, { A, Bt, At, B }] of Object.entries(this.factors)) {
      transpose(A.data, At, this.padded, this.frozen[name].ins);
      transpose(Bt.data, B, this.padded, this.frozen[name].outs);
    }
  }

  /** The factors as an adapter, a copy. @returns {Adapter} */
  adapter() {
    return this.copied(({ A, Bt }) => [A.data, Bt.data]);
  }

  /** The gradients in the same form. @returns {Adapter} */
  gradients() {
    return this.copied(({ A, Bt }) => [A.grad, Bt.grad]);
  }

  copied(choose) {
    const { r, scaling } = this;
    return Object.fromEntries(Object.entries(this.factors).map(([name, own]) => {
      const { ins, outs } = this.frozen[name], [A, Bt] = choose(own), lora_B = new Float32Array(outs * r);
      transpose(Bt.subarray(0, r * outs), lora_B, r, outs);
      return [name, { lora_A: A.slice(0, r * ins), lora_B, r, scaling }];
    }));
  }

  /** Takes an adapter's factors in the place of what was drawn. @param {Adapter} adapter */
  begin(adapter) {
    for (const [name, { lora_A, lora_B }] of Object.entries(adapter)) {
      this.factors[name].A.data.set(lora_A);
      transpose(lora_B, this.factors[name].Bt.data, this.frozen[name].outs, this.r);
    }
    this.turnFactors();
  }

  // ------------------------------------------------------------------------------------ what can be taken back

  /** @returns {Value} */
  value(rows, cols, needsGrad = true) {
    return { rows, cols, data: this.space.floats(rows * cols), grad: needsGrad ? this.space.floats(rows * cols) : undefined };
  }

  /** The rows of a value from `first` on: the same memory. @param {Value} x @returns {Value} */
  rowsFrom(x, first) {
    return { ...x, rows: x.rows - first, data: x.data.subarray(first * x.cols), grad: x.grad?.subarray(first * x.cols) };
  }

  /** y = x W^T, and scaling * (x A^T) B^T where a LoRA is beside it. @param {string} name @param {Value} x */
  linear(name, x) {
    const { space, padded: r, scaling } = this, { W, Wt, ins, outs } = this.frozen[name], lora = this.factors[name];
    const n = x.rows, y = this.value(n, outs), low = space.floats(n * r);
    space.multiply(x.data, Wt, y.data, n, ins, outs);
    if (lora) {
      space.multiply(x.data, lora.At, low, n, ins, r);
      scale(low, scaling);
      space.multiply(low, lora.Bt.data, y.data, n, r, outs);
    }
    this.tape.push(() => {
      if (x.grad) space.multiply(y.grad, W, x.grad, n, outs, ins);
      if (!lora) return;
      const down = space.floats(n * r);
      space.multiply(y.grad, lora.B, down, n, outs, r);
      scale(down, scaling);
      space.multiply(low, y.grad, lora.Bt.grad, r, n, outs, true);
      space.multiply(down, x.data, lora.A.grad, r, n, ins, true);
      if (x.grad) space.multiply(down, lora.A.data, x.grad, n, r, ins);
    });
    return y;
  }

  /** RMSNorm, each row by itself. */
  norm(name, x) {
    const gain = this.model.weight(name), { rows, cols } = x, y = this.value(rows, cols, Boolean(x.grad));
    const factors = Array.from({ length: rows }, (_, i) => {
      const from = i * cols;
      let squares = 0;
      for (let j = 0; j < cols; j++) squares += x.data[from + j] ** 2;
      const factor = 1 / Math.sqrt(squares / cols + this.config.rms_norm_eps);
      for (let j = 0; j < cols; j++) y.data[from + j] = x.data[from + j] * factor * gain[j];
      return factor;
    });
    if (x.grad) this.tape.push(() => {
      for (let i = 0; i < rows; i++) {
        const from = i * cols, factor = factors[i];
        let along = 0;
        for (let j = 0; j < cols; j++) along += y.grad[from + j] * gain[j] * x.data[from + j];
        along *= (factor * factor) / cols;
        for (let j = 0; j < cols; j++) x.grad[from + j] += factor * (y.grad[from + j] * gain[j] - along * x.data[from + j]);
      }
    });
    return y;
  }

  /** RoPE in place; row i stands at position `first` + i. Its gradient is turned back by the same angles. */
  rotate(x, first) {
    const turn = (data, sign) => {
      for (let i = 0; i < x.rows; i++) this.model.rotate(data.subarray(i * x.cols, (i + 1) * x.cols), sign * (first + i));
    };
    turn(x.data, 1);
    this.tape.push(() => turn(x.grad, -1));
    return x;
  }

  /** Causal attention of the queries from position `first` on. @param {Value} q @param {Value} k @param {Value} v */
  attention(q, k, v, first) {
    const { num_attention_heads: heads, num_key_value_heads: shared, head_dim: d } = this.config;
    const out = this.value(q.rows, q.cols), shares = this.space.floats(heads * q.rows * k.rows), root = Math.sqrt(d);
    const each = (run) => {
      for (let head = 0; head < heads; head++) {
        const group = Math.floor((head * shared) / heads) * d;
        for (let i = 0; i < q.rows; i++) {
          const begin = (head * q.rows + i) * k.rows;
          run(i * q.cols + head * d, group, shares.subarray(begin, begin + first + i + 1));
        }
      }
    };
    each((at, group, p) => {
      let largest = -Infinity, total = 0;
      for (let t = 0; t < p.length; t++) {
        const key = t * k.cols + group;
        let dot = 0;
        for (let c = 0; c < d; c++) dot += q.data[at + c] * k.data[key + c];
        p[t] = dot / root;
        largest = Math.max(largest, p[t]);
      }
      for (let t = 0; t < p.length; t++) total += p[t] = Math.exp(p[t] - largest);
      for (let t = 0; t < p.length; t++) {
        const value = t * v.cols + group, share = (p[t] /= total);
        for (let c = 0; c < d; c++) out.data[at + c] += share * v.data[value + c];
      }
    });
    const slopes = new Float64Array(k.rows);
    this.tape.push(() => each((at, group, p) => {
      let mean = 0;
      for (let t = 0; t < p.length; t++) {
        const value = t * v.cols + group;
        let dot = 0;
        for (let c = 0; c < d; c++) {
          dot += out.grad[at + c] * v.data[value + c];
          v.grad[value + c] += p[t] * out.grad[at + c];
        }
        slopes[t] = dot;
        mean += p[t] * dot;
      }
      for (let t = 0; t < p.length; t++) {
        const key = t * k.cols + group, slope = (p[t] * (slopes[t] - mean)) / root; // softmax, then the dot product
        for (let c = 0; c < d; c++) {
          q.grad[at + c] += slope * k.data[key + c];
          k.grad[key + c] += slope * q.data[at + c];
        }
      }
    }));
    return out;
  }

  /** SwiGLU: silu(gate) * up. @param {Value} gate @param {Value} up */
  swiglu(gate, up) {
    const y = this.value(gate.rows, gate.cols), open = gate.data.map((g) => 1 / (1 + Math.exp(-g)));
    for (let i = 0; i < open.length; i++) y.data[i] = gate.data[i] * open[i] * up.data[i];
    this.tape.push(() => {
      for (let i = 0; i < open.length; i++) {
        const g = gate.data[i], s = open[i];
        up.grad[i] += y.grad[i] * g * s;
        gate.grad[i] += y.grad[i] * up.data[i] * s * (1 + g * (1 - s));
      }
    });
    return y;
  }

  /** @param {Value} x @param {Value} y */
  add(x, y) {
    const z = this.value(x.rows, x.cols);
    for (let i = 0; i < z.data.length; i++) z.data[i] = x.data[i] + y.data[i];
    this.tape.push(() => {
      if (x.grad) addTo(x.grad, z.grad);
      addTo(y.grad, z.grad);
    });
    return z;
  }

  /** The sum of -log p of the targets, divided by `count`; row i of the logits is for target i. */
  crossEntropy(logits, targets, count) {
    let sum = 0;
    targets.forEach((target, i) => {
      const row = logits.data.subarray(i * logits.cols, (i + 1) * logits.cols), grad = logits.grad.subarray(i * logits.cols);
      let largest = -Infinity, total = 0;
      for (const v of row) largest = Math.max(largest, v);
      for (const v of row) total += Math.exp(v - largest);
      sum += Math.log(total) - (row[target] - largest);
      for (let j = 0; j < row.length; j++) grad[j] = (Math.exp(row[j] - largest) / total - Number(j === target)) / count;
    });
    return sum / count;
  }

  // --------------------------------------------------------------------------------------------------- training

  /**
   * One sequence, forward and backward. In the last block only the tokens that predict the answer need more than keys
   * and values: nothing else of it reaches the loss.
   *
   * @param {Row} row @param {number} count how many tokens of answers the batch has @returns {number} its part of the loss
   */
  sequence({ prompt, answer }, count) {
    const { hidden_size: size, num_hidden_layers: layers, max_position_embeddings: most } = this.config;
    const ids = [...prompt, ...answer.slice(0, -1)], learned = prompt.length - 1, embedding = this.model.weight("model.embed_tokens");
    if (ids.length > most) throw new Error(`a text has ${ids.length} tokens, and the model ${most} positions: shorten it`);
    let x = this.value(ids.length, size, false);
    ids.forEach((id, i) => x.data.set(embedding.subarray(id * size, (id + 1) * size), i * size));
    for (let layer = 0; layer < layers; layer++) {
      const block = `model.layers.${layer}`, first = layer === layers - 1 ? learned : 0;
      const from = (name) => `${block}.${name}`, own = this.norm(from("input_layernorm"), x);
      const k = this.rotate(this.linear(from("self_attn.k_proj"), own), 0), v = this.linear(from("self_attn.v_proj"), own);
      const q = this.rotate(this.linear(from("self_attn.q_proj"), this.rowsFrom(own, first)), first);
      x = this.add(this.rowsFrom(x, first), this.linear(from("self_attn.o_proj"), this.attention(q, k, v, first)));
      const read = this.norm(from("post_attention_layernorm"), x);
      const hidden = this.swiglu(this.linear(from("mlp.gate_proj"), read), this.linear(from("mlp.up_proj"), read));
      x = this.add(x, this.linear(from("mlp.down_proj"), hidden));
    }
    const loss = this.crossEntropy(this.linear(this.head, this.norm("model.norm", x)), answer, count);
    while (this.tape.length) this.tape.pop()();
    this.space.free(this.mark);
    return loss;
  }

  /**
   * The gradients of a batch, and its loss: the mean over all tokens of its answers. Yields behind each sequence, so
   * that whoever runs it can do something else, or stop.
   *
   * @param {Row[]} batch @returns {Generator<undefined, number>}
   */
  *backward(batch) {
    for (const { grad } of this.parameters) grad.fill(0);
    const count = batch.reduce((sum, { answer }) => sum + answer.length, 0);
    let loss = 0;
    for (const row of batch) {
      loss += this.sequence(row, count);
      yield;
    }
    return loss;
  }

  /** AdamW's step without weight decay, with the gradients clipped together. Returns their norm before. */
  update() {
    let squares = 0;
    for (const { grad } of this.parameters) for (const g of grad) squares += g * g;
    const norm = Math.sqrt(squares), clip = Math.min(1, CLIP / (norm + 1e-6));
    if (!Number.isFinite(norm)) throw new Error(`the gradient's norm is ${norm} at step ${this.step}: try a lower learning rate`);
    const lr = this.lr * rateFactor(this.step++, this.steps);
    const [rate, root] = [lr / (1 - BETAS[0] ** this.step), Math.sqrt(1 - BETAS[1] ** this.step)];
    for (const { data, grad, m, v } of this.parameters) {
      for (let i = 0; i < data.length; i++) {
        const g = grad[i] * clip;
        m[i] += (1 - BETAS[0]) * (g - m[i]);
        v[i] = BETAS[1] * v[i] + (1 - BETAS[1]) * g * g;
        data[i] -= (rate * m[i]) / (Math.sqrt(v[i]) / root + EPS);
      }
    }
    this.turnFactors();
    return norm;
  }
}
