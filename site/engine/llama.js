/**
 * The Llama: one token in, the next token's logits out. Every linear layer can have adapters beside it.
 *
 * @typedef {import("./safetensors.js").Tensor} Tensor
 * @typedef {import("./adapters.js").Adapter} Adapter
 * @typedef {{adapter: Adapter, weight: number}} Weighted
 */

/**
 * y = W x, or y += scale * W x. Four rows at a time: four sums that don't wait for each other, three times as fast.
 *
 * @param {Float32Array} W row by row @param {Float32Array} x @param {Float32Array} y @param {number} [scale]
 */
export function matvec(W, x, y, scale) {
  const cols = x.length;
  const put = (i, sum) => {
    y[i] = scale === undefined ? sum : y[i] + scale * sum;
  };
  let row = 0;
  for (; row + 3 < y.length; row += 4) {
    const a = row * cols, b = a + cols, c = b + cols, d = c + cols;
    let p = 0, q = 0, r = 0, s = 0;
    for (let j = 0; j < cols; j++) {
      const v = x[j];
      p += W[a + j] * v;
      q += W[b + j] * v;
      r += W[c + j] * v;
      s += W[d + j] * v;
    }
    put(row, p);
    put(row + 1, q);
    put(row + 2, r);
    put(row + 3, s);
  }
  for (; row < y.length; row++) {
    let sum = 0;
    for (let j = 0; j < cols; j++) sum += W[row * cols + j] * x[j];
    put(row, sum);
  }
}

/** What the attention layers remember: keys and values of all tokens so far. Each answer has its own. */
export class Cache {
  /** @param {any} config */
  constructor(config) {
    const size = config.max_position_embeddings * config.num_key_value_heads * config.head_dim;
    const layers = Array.from({ length: config.num_hidden_layers });
    this.position = 0;
    this.keys = layers.map(() => new Float32Array(size));
    this.values = layers.map(() => new Float32Array(size));
  }
}

export class Llama {
  /**
   * @param {any} config the contents of config.json
   * @param {Record<string, Tensor>} weights what model.safetensors holds
   */
  constructor(config, weights) {
    const { model_type: type, hidden_act: act, attention_bias: bias, rope_parameters: rope } = config;
    if (type !== "llama" || act !== "silu" || bias || rope.rope_type !== "default") {
      throw new Error(`this is a ${type} with ${act} and ${rope?.rope_type} RoPE; a plain Llama is run`);
    }
    this.config = config;
    this.weights = weights;
    this.frequencies = Array.from({ length: config.head_dim / 2 }, (_, i) => rope.rope_theta ** ((-2 * i) / config.head_dim));
  }

  /** @param {string} name @returns {Float32Array} */
  weight(name) {
    const tensor = this.weights[`${name}.weight`];
    if (!tensor) throw new Error(`the model's file has no ${name}.weight`);
    return tensor.data;
  }

  /**
   * W x + sum over adapters of weight * scaling * B (A x): LoRA beside a frozen layer, and all of it.
   *
   * @param {string} name @param {Float32Array} x @param {Weighted[]} adapters @returns {Float32Array}
   */
  linear(name, x, adapters) {
    const y = new Float32Array(this.weights[`${name}.weight`].shape[0]);
    matvec(this.weight(name), x, y);
    for (const { adapter, weight } of adapters) {
      const layer = adapter[name];
      if (!layer || weight === 0) continue;
      const low = new Float32Array(layer.r);
      matvec(layer.lora_A, x, low);
      matvec(layer.lora_B, low, y, weight * layer.scaling);
    }
    return y;
  }

  /** RMSNorm: x divided by the root of its mean square, times a learnt gain. */
  norm(name, x) {
    const gain = this.weight(name);
    let squares = 0;
    for (const v of x) squares += v * v;
    const scale = 1 / Math.sqrt(squares / x.length + this.config.rms_norm_eps);
    return x.map((v, i) => v * scale * gain[i]);
  }

  /** RoPE: each head's vector is turned, two of its entries at a time, by angles that grow with the position. */
  rotate(heads, position) {
    const d = this.config.head_dim, half = d / 2;
    this.frequencies.forEach((frequency, i) => {
      const cos = Math.cos(position * frequency), sin = Math.sin(position * frequency);
      for (let at = i; at < heads.length; at += d) {
        const a = heads[at], b = heads[at + half];
        heads[at] = a * cos - b * sin;
        heads[at + half] = b * cos + a * sin;
      }
    });
  }

  /** Grouped-query attention: several heads of queries share one head of keys and values. */
  attention(x, layer, cache, adapters) {
    const { num_attention_heads: queries, num_key_value_heads: shared, head_dim: d } = this.config;
    const block = `model.layers.${layer}.self_attn`, { position } = cache;
    const q = this.linear(`${block}.q_proj`, x, adapters), k = this.linear(`${block}.k_proj`, x, adapters);
    this.rotate(q, position);
    this.rotate(k, position);
    const keys = cache.keys[layer], values = cache.values[layer], width = shared * d;
    keys.set(k, position * width);
    values.set(this.linear(`${block}.v_proj`, x, adapters), position * width);
    const out = new Float32Array(queries * d), scores = new Float64Array(position + 1);
    for (let head = 0; head < queries; head++) {
      const from = head * d, group = Math.floor((head * shared) / queries) * d;
      let largest = -Infinity, total = 0;
      for (let t = 0; t <= position; t++) {
        let dot = 0;
        for (let i = 0; i < d; i++) dot += q[from + i] * keys[t * width + group + i];
        scores[t] = dot / Math.sqrt(d);
        largest = Math.max(largest, scores[t]);
      }
      for (let t = 0; t <= position; t++) total += scores[t] = Math.exp(scores[t] - largest);
      for (let t = 0; t <= position; t++) {
        const share = scores[t] / total;
        for (let i = 0; i < d; i++) out[from + i] += share * values[t * width + group + i];
      }
    }
    return this.linear(`${block}.o_proj`, out, adapters);
  }

  /** SwiGLU: one half of the MLP decides, through SiLU, how much of the other passes. */
  mlp(x, layer, adapters) {
    const block = `model.layers.${layer}.mlp`;
    const gate = this.linear(`${block}.gate_proj`, x, adapters), up = this.linear(`${block}.up_proj`, x, adapters);
    return this.linear(`${block}.down_proj`, up.map((v, i) => (v * gate[i]) / (1 + Math.exp(-gate[i]))), adapters);
  }

  /**
   * Reads one token. Of the tokens of a prompt only the last one's logits are wanted, so they can be left out.
   *
   * @param {number} token @param {Cache} cache @param {Weighted[]} [adapters] @param {boolean} [wanted]
   * @returns {Float32Array | undefined} a number for each token that may come next
   */
  step(token, cache, adapters = [], wanted = true) {
    const { hidden_size: size, max_position_embeddings: most, num_hidden_layers: layers } = this.config;
    if (cache.position >= most) throw new Error(`the model has ${most} positions, and all are taken: use a shorter prompt`);
    const embedding = this.weight("model.embed_tokens");
    const x = embedding.slice(token * size, (token + 1) * size);
    const add = (update) => update.forEach((v, i) => (x[i] += v));
    for (let layer = 0; layer < layers; layer++) {
      const block = `model.layers.${layer}`;
      add(this.attention(this.norm(`${block}.input_layernorm`, x), layer, cache, adapters));
      add(this.mlp(this.norm(`${block}.post_attention_layernorm`, x), layer, adapters));
    }
    cache.position++;
    if (!wanted) return undefined;
    const logits = new Float32Array(embedding.length / size);
    const head = this.config.tie_word_embeddings ? embedding : this.weight("lm_head");
    matvec(head, this.norm("model.norm", x), logits);
    return logits;
  }
}
