/**
 * The memory of a training step, as utils/profiling/memory.py predicts it, for models of Llama's architecture: Llama,
 * Mistral, Qwen2 and Qwen3. The step is followed operation by operation (tape.js) from a model's config.json; what PEFT,
 * bitsandbytes and PyTorch's kernels make and keep is in `linear`, `attention` and `optimizer`. Figures are bytes, a GB is 10**9.
 * Held to the Python by tests/site/test_fit.py.
 */
import { Tape, rounded } from "./tape.js";

export const GB = 1e9;
export const METHODS = ["full", "lora", "qlora"];
export const OPTIMIZERS = ["adamw", "adamw-fused", "adamw-8bit", "adamw-paged", "adamw-paged-8bit", "none"];
export const ATTENTION = ["sdpa", "eager"];
export const WIDTHS = { float32: 4, float16: 2, bfloat16: 2 };
export const PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
export const KINDS = [
  "weights", "adapters", "gradients", "optimizer", "attention", "MLP", "norms", "LoRA", "between blocks", "embedding",
  "logits and loss", "backward in passing", "kernels' workspace",
];
const CONTEXT = 810_000_000, GAPS = 1.08; // utils/profiling/fit.py: CUDA's own, and what the allocator can't fill
const WORKSPACE = { hopper: 32 * 2 ** 20, other: 8_519_680 };

/** The bytes that a card must have for a step with this peak. @param {number} peak */
export const needed = (peak) => Math.trunc(peak * GAPS) + CONTEXT;

/** A step's settings: the fields of the Python's Setup, with its defaults. */
export const SETUP = {
  method: "lora", batch: 1, length: 512, dtype: "bfloat16", target_modules: "all-linear", r: 8, lora_dropout: 0,
  adapter_dtype: "float32", double: true, prepared: false, optimizer: "adamw", checkpointing: false, attention: "sdpa", hopper: true,
};

/** What this port doesn't know. `name` is what to call the model. */
export class Unknown extends Error {}

/** More than any model has: a step of so many blocks isn't followed, which would take minutes. */
const MOST = { num_hidden_layers: 1000, other: 10_000_000 };

/** What of each model type is its own: `qkvBias` on three projections, `bias` by the configuration, `qkNorm` on heads. */
const TYPES = {
  llama: { bias: true, mlpBias: true },
  mistral: {},
  qwen2: { qkvBias: true },
  qwen3: { bias: true, qkNorm: true, headDim: 128 },
};

/**
 * The sizes in a transformers config.json. Throws {@link Unknown} for a model of another architecture.
 *
 * @param {any} config
 */
export function shape(config) {
  const type = config?.model_type;
  if (typeof type !== "string") throw new Unknown("This isn't a model's config.json: it has no model_type.");
  if (!Object.hasOwn(TYPES, type)) throw new Unknown(`This page follows the step of Llama, Mistral, Qwen2 and Qwen3. A ${type} model has other parts.`);
  if (config.quantization_config) throw new Unknown("This config.json is of a model that is quantized already. Take that of the model it was made from.");
  const own = TYPES[type];
  const count = (name, fallback) => {
    const value = config[name] ?? fallback;
    if (!Number.isInteger(value) || value < 1) throw new Unknown(`The config.json says ${name} = ${JSON.stringify(value)}: a whole number above 0 is needed.`);
    const most = MOST[name] ?? MOST.other;
    if (value > most) throw new Unknown(`The config.json says ${name} = ${value.toLocaleString("en-US")}: no more than ${most.toLocaleString("en-US")} are followed here.`);
    return value;
  };
  const flag = (name) => {
    const value = config[name] ?? false;
    if (typeof value !== "boolean") throw new Unknown(`The config.json says ${name} = ${JSON.stringify(value)}: true or false is needed.`);
    return value;
  };
  const hidden = count("hidden_size"), heads = count("num_attention_heads");
  const headDim = count("head_dim", own.headDim ?? Math.floor(hidden / heads));
  const kvHeads = count("num_key_value_heads", type === "llama" ? heads : undefined);
  if (heads % kvHeads) throw new Unknown(`${heads} heads can't share ${kvHeads} heads for keys and values evenly.`);
  return {
    type, hidden, heads, kvHeads, headDim,
    layers: count("num_hidden_layers"), intermediate: count("intermediate_size"), vocabulary: count("vocab_size"),
    tied: flag("tie_word_embeddings"),
    qkvBias: Boolean(own.qkvBias || (own.bias && flag("attention_bias"))), oBias: Boolean(own.bias && flag("attention_bias")),
    mlpBias: Boolean(own.mlpBias && flag("mlp_bias")), qkNorm: Boolean(own.qkNorm),
  };
}

/** A block's linear layers as [name, in, out, bias]. */
function projections(s) {
  const q = s.heads * s.headDim, kv = s.kvHeads * s.headDim;
  return [
    ["q_proj", s.hidden, q, s.qkvBias], ["k_proj", s.hidden, kv, s.qkvBias], ["v_proj", s.hidden, kv, s.qkvBias],
    ["o_proj", q, s.hidden, s.oBias],
    ["gate_proj", s.hidden, s.intermediate, s.mlpBias], ["up_proj", s.hidden, s.intermediate, s.mlpBias],
    ["down_proj", s.intermediate, s.hidden, s.mlpBias],
  ];
}

/** How many parameters the model has, and LoRA's of this rank on these layers. */
export function counts(config, { r = 8, target_modules = "all-linear" } = {}) {
  const s = shape(config);
  const norms = 2 * s.hidden + (s.qkNorm ? 2 * s.headDim : 0);
  const block = projections(s).reduce((sum, [, inner, outer, bias]) => sum + inner * outer + (bias ? outer : 0), norms);
  const base = s.layers * block + s.hidden + (s.tied ? 1 : 2) * s.vocabulary * s.hidden;
  const adapted = projections(s).filter(([name]) => target_modules === "all-linear" || target_modules.includes(name));
  return { base, lora: s.layers * r * adapted.reduce((sum, [, inner, outer]) => sum + inner + outer, 0) };
}

/**
 * The peak of one training step after the first.
 *
 * @param {any} config a transformers config.json @param {Partial<typeof SETUP>} settings
 * @returns {{peak: number, phase: string, parts: Record<string, number>, phases: Record<string, number>, resident: number}}
 */
export function predict(config, settings = {}) {
  return new Step(shape(config), { ...SETUP, ...settings }).run();
}

/**
 * The first way to take the step that needs at most `room` bytes, the least painful tried first, as first_that_fits in
 * utils/profiling/fit.py: as it is, with checkpointing, with one sequence at a time too; then the same with LoRA, QLoRA.
 *
 * @returns {{changes: Partial<typeof SETUP>, needed: number} | null} what to change, and what it needs then
 */
export function firstThatFits(config, settings, room) {
  const setup = { ...SETUP, ...settings };
  for (const method of METHODS.slice(METHODS.indexOf(setup.method))) {
    for (const changes of [{ method }, { method, checkpointing: true }, { method, checkpointing: true, batch: 1 }]) {
      const needs = needed(predict(config, { ...setup, ...changes }).peak);
      if (needs <= room) {
        return { changes: Object.fromEntries(Object.entries(changes).filter(([name, value]) => setup[name] !== value)), needed: needs };
      }
    }
  }
  return null;
}

class Step {
  constructor(s, setup) {
    this.s = s;
    this.o = setup;
    this.t = new Tape();
    this.tokens = setup.batch * setup.length;
    this.width = WIDTHS[setup.dtype]; // of computing
    this.kept = setup.method === "qlora" && setup.prepared ? 4 : this.width; // of embedding, head, norms and the stream
    const kinds = new Set([setup.dtype, setup.method !== "full" && setup.adapter_dtype]);
    if (kinds.has("float16") && kinds.has("bfloat16")) throw new Unknown("Adapters in bfloat16 beside a model in float16, or the other way round, aren't followed here.");
    this.narrow = WIDTHS[setup.adapter_dtype];
    this.trainable = [];
  }

  /** A parameter that is there all the time; a leaf of the graph if it trains. */
  parameter(n, width, trains, kind = "weights") {
    const tensor = this.t.make(n, width, kind);
    if (!trains) return tensor;
    tensor.node = this.leaf(tensor);
    this.trainable.push(tensor);
    return tensor;
  }
  leaf(tensor) {
    return { order: Infinity, leaf: tensor, inputs: [], kept: [], keeps: 0, block: null, index: -1, back: () => [] };
  }

  layer([name, inner, outer, bias]) {
    const { o } = this, full = o.method === "full";
    const layer = { name, inner, outer, weight: null, bias: null, a: null, b: null, blocks: 0 };
    if (o.method === "qlora") {
      layer.blocks = Math.ceil((inner * outer) / 64);
      layer.weight = this.parameter(Math.ceil((inner * outer) / 2), 1, false);
      this.parameter(layer.blocks, o.double ? 1 : 4, false);
      this.parameter(16, 4, false);
      if (o.double) [Math.ceil(layer.blocks / 256), 256, 1].forEach((n) => this.parameter(n, 4, false));
    } else layer.weight = this.parameter(inner * outer, this.width, full);
    if (bias) layer.bias = this.parameter(outer, this.kept, full);
    if (!full && (o.target_modules === "all-linear" || o.target_modules.includes(name))) {
      layer.a = this.parameter(o.r * inner, this.narrow, true, "adapters");
      layer.b = this.parameter(outer * o.r, this.narrow, true, "adapters");
    }
    return layer;
  }

  run() {
    const { s, o, t, tokens } = this, full = o.method === "full";
    t.change("kernels' workspace", 2 * (o.hopper ? WORKSPACE.hopper : WORKSPACE.other));
    const embedding = this.parameter(s.vocabulary * s.hidden, this.kept, full);
    const norm = (n) => this.parameter(n, this.kept, full);
    const blocks = Array.from({ length: s.layers }, () => ({
      ...Object.fromEntries(projections(s).map((own) => [own[0], this.layer(own)])),
      qNorm: s.qkNorm && norm(s.headDim), kNorm: s.qkNorm && norm(s.headDim), first: norm(s.hidden), second: norm(s.hidden),
    }));
    const last = norm(s.hidden);
    const head = s.tied ? embedding : this.parameter(s.vocabulary * s.hidden, this.kept, full);
    this.parameter(s.headDim / 2, 4, false), this.parameter(s.headDim / 2, 4, false);
    this.optimizer();
    t.make(tokens, 8, "embedding");
    const resident = t.total;

    let loss;
    t.during("forward", () => {
      loss = this.forward(embedding, blocks, last, head);
    });
    t.kind = "backward in passing";
    t.during("backward", () => t.backward(loss.node, t.hold(t.make(1, 4)))); // the loss's own gradient stays to the end
    t.during("optimizer", () => {
      if (o.optimizer !== "adamw") return;
      for (const parameter of this.trainable) t.make(parameter.n, parameter.width, "optimizer");
    });
    const phase = Object.keys(t.peaks).reduce((best, name) => (t.peaks[name].total > t.peaks[best].total ? name : best));
    const parts = Object.fromEntries(KINDS.filter((kind) => t.peaks[phase].parts[kind]).map((kind) => [kind, t.peaks[phase].parts[kind]]));
    const phases = Object.fromEntries(Object.entries(t.peaks).map(([name, { total }]) => [name, total]));
    return { peak: t.peaks[phase].total, phase, parts, phases, resident };
  }

  /** The states that the GPU holds between two steps. */
  optimizer() {
    const { t, o } = this, paged = o.optimizer.includes("paged");
    const hold = (n, width) => t.make(n, width, "optimizer");
    if (o.optimizer === "none") return;
    if (o.optimizer.includes("8bit")) {
      hold(256, 4), hold(256, 4);
      for (const { n } of this.trainable) {
        const small = n < 4096;
        if (!(paged && n >= 100_000)) hold(n, small ? 4 : 1), hold(n, small ? 4 : 1);
        if (!small) hold(Math.ceil(n / 256), 4), hold(Math.ceil(n / 256), 4);
      }
    } else if (paged) this.trainable.filter(({ n }) => n < 100_000).forEach(({ n }) => (hold(n, 4), hold(n, 4)));
    else this.trainable.forEach(({ n, width }) => (hold(n, width), hold(n, width)));
  }

  forward(embedding, blocks, last, head) {
    const { s, o, t, tokens } = this;
    const logits = tokens * s.vocabulary, loud = "logits and loss";
    const ids = t.as("embedding", () => {
      const node = t.record([embedding], [], (g) => {
        const grad = t.make(embedding.n, embedding.width);
        t.drop(g);
        return [grad];
      });
      const x = t.make(tokens * s.hidden, this.kept);
      x.node = node;
      return x;
    });
    t.kind = "between blocks";
    const positions = t.make(o.length, 8);
    if (o.attention === "eager") this.mask = t.make(o.batch * o.length ** 2, this.kept);
    t.kind = "attention";
    const [cos, sin] = [0, 1].map(() => t.make(o.length * s.headDim, this.kept));
    t.kind = "between blocks";
    let x = t.hold(ids);
    if (o.checkpointing && o.method !== "full") {
      // transformers lets the embedding's output require a gradient, which stays there, so that every block has one
      ids.node = { ...this.leaf(t.hold(ids)), stays: true };
    }
    for (const block of blocks) {
      const input = x, run = () => this.block(input, block, cos, sin);
      x = o.checkpointing ? t.checkpoint([input, cos, sin, positions, ...(this.mask ? [this.mask] : [])], run) : run();
      t.drop(input);
    }
    const hidden = t.as("norms", () => this.norm(x, last, s.hidden));
    t.drop(x, positions, ids, cos, sin, this.mask);
    t.kind = loud;
    const scores = this.product(hidden, head, logits, s.hidden, loud);
    const wide = this.to(scores, 4);
    const labels = t.make(tokens + o.batch, 8), shifted = o.batch > 1 ? t.make(tokens, 8) : t.hold(labels);
    const softmax = t.make(logits, 4);
    const losses = [t.make(1, 4), t.make(1, 4)];
    const node = t.record([wide], [softmax, shifted, losses[1]], (g, [probabilities, ...rest]) => {
      const first = t.make(logits, 4, loud);
      t.drop(...rest);
      const second = t.make(logits, 4, loud);
      t.drop(first, probabilities, g);
      return [second];
    });
    t.drop(wide, softmax, labels, shifted, hidden, scores, losses[1]);
    losses[0].node = node;
    return losses[0];
  }

  /** One block. What the caller passes stays the caller's; the result is the caller's too. */
  block(x, own, cos, sin) {
    const { s, t } = this;
    const normed = t.as("norms", () => this.norm(x, own.first, s.hidden));
    const attended = t.as("attention", () => this.attention(normed, own, cos, sin));
    t.drop(normed);
    const middle = this.add(x, attended);
    t.drop(attended);
    const again = t.as("norms", () => this.norm(middle, own.second, s.hidden));
    const out = t.as("MLP", () => {
      const gate = this.linear(again, own.gate_proj);
      const active = this.silu(gate);
      t.drop(gate);
      const up = this.linear(again, own.up_proj);
      const product = this.times(active, up);
      t.drop(active, up);
      const down = this.linear(product, own.down_proj);
      t.drop(product);
      return down;
    });
    t.drop(again);
    const result = this.add(middle, out);
    t.drop(out, middle);
    return result;
  }

  attention(x, own, cos, sin) {
    const { s, t } = this;
    let q = this.linear(x, own.q_proj);
    if (s.qkNorm) q = this.headNorm(q, own.qNorm);
    let k = this.linear(x, own.k_proj);
    if (s.qkNorm) k = this.headNorm(k, own.kNorm);
    const v = this.linear(x, own.v_proj);
    const [turnedQ, turnedK] = [this.rotary(q, cos, sin), this.rotary(k, cos, sin)];
    t.drop(q, k);
    const mixed = this.scores(turnedQ, turnedK, v);
    const out = this.linear(mixed, own.o_proj);
    t.drop(mixed, turnedQ, turnedK, v);
    return out;
  }

  headNorm(x, weight) {
    const y = this.t.as("norms", () => this.norm(x, weight, this.s.headDim));
    this.t.drop(x);
    return y;
  }

  // ------------------------------------------------------------------------------------------ operations

  /** A tensor in another width: itself where it has that already. */
  to(x, width) {
    const { t } = this;
    if (x.width === width) return t.hold(x);
    const node = t.record([x], [], (g) => {
      const grad = t.make(x.n, x.width, x.n === this.tokens * this.s.vocabulary ? "logits and loss" : t.kind);
      t.drop(g);
      return [grad];
    });
    const y = t.make(x.n, width);
    y.node = node;
    return y;
  }

  add(x, y) {
    const { t } = this;
    const node = t.record([x, y], [], (g) => {
      const out = [x, y].map((side) => {
        if (!side.node) return null;
        return side.width === g.width ? t.hold(g) : t.make(side.n, side.width);
      });
      t.drop(g);
      return out;
    });
    const sum = t.make(x.n, Math.max(x.width, y.width));
    sum.node = node;
    return sum;
  }

  /** x W^T: with a weight that trains, x is kept. */
  product(x, weight, n, inner, kind = this.t.kind, bias = null) {
    const { t } = this;
    const keeps = [...(weight.node ? [x] : []), ...(x.node ? [weight] : [])];
    const node = t.record(bias ? [x, weight, bias] : [x, weight], keeps, (g, kept) => {
      const own = weight.node && t.make(weight.n, weight.width);
      const back = x.node && t.make(x.n, x.width);
      const bent = bias?.node && t.make(bias.n, bias.width);
      t.drop(g, ...kept);
      return [back, own, bent];
    });
    const y = t.make(n, weight.width, kind);
    y.node = node;
    return y;
  }

  scale(x) {
    const { t } = this;
    const node = t.record([x], [], (g) => {
      const grad = t.make(x.n, x.width);
      t.drop(g);
      return [grad];
    });
    const y = t.make(x.n, x.width);
    y.node = node;
    return y;
  }

  /** bitsandbytes' Linear4bit: the matrix is made for each use, and its scales on the way. */
  fourBit(x, layer) {
    const { t, o } = this, narrow = this.to(x, this.width);
    const matrix = () => {
      const scales = o.double && t.make(layer.blocks, 4);
      const made = t.make(layer.inner * layer.outer, this.width);
      t.drop(scales);
      return made;
    };
    const node = t.record([narrow], [], (g) => {
      const made = matrix(), grad = t.make(narrow.n, narrow.width);
      t.drop(made, g);
      return [grad];
    });
    const made = matrix();
    let y = t.make(this.tokens * layer.outer, this.width);
    y.node = node;
    t.drop(made);
    if (layer.bias) {
      const bent = this.add(y, layer.bias.node ? layer.bias : { ...layer.bias, n: y.n });
      t.drop(y);
      y = bent;
    }
    const out = this.to(y, x.width);
    t.drop(y, narrow);
    return out;
  }

  /** A linear layer, and PEFT's adapter beside it: peft/tuners/lora/layer.py, Linear.forward, and bnb.py. */
  linear(x, layer) {
    const { t, o, tokens } = this, kind = t.kind, four = o.method === "qlora";
    const plain = () => (four ? this.fourBit(x, layer) : this.product(x, layer.weight, tokens * layer.outer, layer.inner, kind, layer.bias));
    if (!layer.a) return plain();
    let y = plain();
    const out = t.as("LoRA", () => {
      if (four) {
        const copy = t.make(y.n, y.width);
        copy.node = y.node && t.record([y], [], (g) => [g]);
        t.drop(y);
        y = copy;
      }
      const { width } = y;
      const wide = this.to(x, this.narrow);
      const dropped = o.lora_dropout ? this.dropout(wide) : t.hold(wide);
      t.drop(wide);
      const low = this.product(dropped, layer.a, tokens * o.r, layer.inner);
      const high = this.product(low, layer.b, tokens * layer.outer, o.r);
      t.drop(low);
      const scaled = this.scale(high);
      t.drop(high);
      if (four) {
        const narrow = this.to(scaled, width), sum = this.add(y, narrow);
        t.drop(narrow, scaled, y, dropped);
        return sum;
      }
      const sum = this.add(y, scaled);
      t.drop(scaled, y);
      const result = this.to(sum, width);
      t.drop(sum, dropped);
      return result;
    });
    if (out.refs === 1) t.relabel(out, kind);
    return out;
  }

  dropout(x) {
    const { t } = this;
    const y = t.make(x.n, x.width), mask = t.make(x.n, 1);
    y.node = t.record([x], [mask], (g, [kept]) => {
      const grad = t.make(x.n, x.width);
      t.drop(g, kept);
      return [grad];
    });
    t.drop(mask);
    return y;
  }

  silu(x) {
    const { t } = this;
    const node = t.record([x], [x], (g, [kept]) => {
      const grad = t.make(x.n, x.width);
      t.drop(g, kept);
      return [grad];
    });
    const y = t.make(x.n, x.width);
    y.node = node;
    return y;
  }

  times(x, y) {
    const { t } = this;
    const keeps = [...(x.node ? [y] : []), ...(y.node ? [x] : [])];
    const node = t.record([x, y], keeps, (g, kept) => {
      const out = [x, y].map((side) => side.node && t.make(side.n, side.width));
      t.drop(g, ...kept);
      return out;
    });
    const product = t.make(x.n, x.width);
    product.node = node;
    return product;
  }

  /** RMSNorm over `size` values: in float32, and cast back before the weight. */
  norm(x, weight, size) {
    const { t } = this, { n } = x, few = n / size;
    const cast = x.width !== 4, wide = cast ? t.make(n, 4) : x;
    const squares = t.make(n, 4), variance = t.make(few, 4);
    t.drop(squares);
    const root = t.make(few, 4);
    const product = t.make(n, 4);
    const back = cast ? t.make(n, x.width) : t.hold(product);
    const keeps = x.node ? [wide, root] : [];
    const node = t.record([x, weight], [...keeps, ...(weight.node ? [back] : [])], (g, kept) => {
      const [own, rooted] = x.node ? kept : [null, null];
      const grad = x.node ? t.make(n, weight.width) : null; // by the weight
      let bent = null;
      if (weight.node) {
        const all = t.make(n, weight.width);
        bent = t.make(size, weight.width);
        t.drop(all, kept[kept.length - 1]);
      }
      t.drop(g);
      if (!x.node) return [null, bent];
      let up = grad;
      if (cast) {
        up = t.make(n, 4);
        t.drop(grad);
      }
      const direct = t.make(n, 4), through = t.make(n, 4), roots = t.make(few, 4);
      t.drop(through, up, rooted);
      const mean = t.make(n, 4);
      t.drop(roots);
      const power = t.make(n, 4), twice = t.make(n, 4), squared = t.make(n, 4);
      t.drop(twice, power, mean, own);
      const sum = t.make(n, 4);
      t.drop(direct, squared);
      if (!cast) return [sum, bent];
      const narrow = t.make(n, x.width);
      t.drop(sum);
      return [narrow, bent];
    });
    const y = t.make(n, weight.width);
    y.node = node;
    t.drop(back, product, root, variance);
    if (cast) t.drop(wide);
    return y;
  }

  /** x cos + rotate_half(x) sin. */
  rotary(x, cos, sin) {
    const { t } = this, { n, width } = x;
    const node = t.record([x], [cos, sin], (g, kept) => {
      const turned = t.make(n, width), minus = t.make(n / 2, width), one = t.make(n, width);
      t.drop(minus);
      const other = t.make(n, width);
      t.drop(turned);
      const half = t.make(n, width);
      t.drop(one, other);
      const straight = t.make(n, width);
      t.drop(g);
      const sum = t.make(n, width);
      t.drop(half, straight, ...kept);
      return [sum];
    });
    const straight = t.make(n, width), minus = t.make(n / 2, width), half = t.make(n, width);
    t.drop(minus);
    const turned = t.make(n, width);
    t.drop(half);
    const y = t.make(n, width);
    y.node = node;
    t.drop(turned, straight);
    return y;
  }

  /** softmax(q k^T) v by the kernel that PyTorch takes on CUDA. */
  scores(q, k, v) {
    if (this.o.attention === "eager") return this.written(q, k, v, true);
    if (q.width === 2) return this.fused(q, k, v, true);
    return this.s.heads === this.s.kvHeads ? this.fused(q, k, v, false) : this.written(q, k, v, false);
  }

  /** FlashAttention, or in float32 the memory-efficient kernel: no scores are kept. */
  fused(q, k, v, flash) {
    const { t, o, s } = this;
    const rows = o.batch * s.heads * (flash ? o.length : 32 * Math.ceil(o.length / 32));
    const y = t.make(q.n, q.width), sums = t.make(rows, 4), seeds = [t.make(1, 8), t.make(1, 8)];
    y.node = t.record([q, k, v], [q, k, v, y, sums, ...seeds], (g, kept) => {
      const grads = [q, k, v].map((own) => t.make(own.n, own.width));
      if (flash) t.passing(this.flashWorkspace(), "kernels' workspace");
      t.drop(g, ...kept);
      return grads;
    });
    t.drop(sums, ...seeds);
    return y;
  }
  flashWorkspace() {
    const { s, o } = this;
    const length = 128 * Math.ceil(o.length / 128), wide = 32 * Math.ceil(s.headDim / 32);
    const one = rounded(o.batch * length * s.heads * wide * 4) + rounded(o.batch * s.heads * length * 4);
    return one + (s.kvHeads === s.heads ? 0 : 2 * rounded(o.batch * o.length * s.heads * s.headDim * 2));
  }

  /** The plain formula, which materializes the scores: transformers' eager attention, or PyTorch's own in float32. */
  written(q, k, v, eager) {
    const { t, o, s } = this, { width } = q, grouped = s.heads !== s.kvHeads;
    const scores = o.batch * s.heads * o.length ** 2, n = q.n, several = o.batch > 1;
    const scaledQ = eager ? t.hold(q) : t.make(n, width);
    const mask = eager ? null : t.make(o.length ** 2, 4);
    const copy = (x, needs) => (needs ? t.make(n, width) : t.hold(x));
    const wideK = copy(k, grouped), wideV = copy(v, grouped || (eager && several));
    const scaledK = eager ? t.hold(wideK) : t.make(n, width);
    const ownQ = copy(scaledQ, several);
    const ownK = copy(scaledK, several && eager && !grouped);
    const raw = t.make(scores, width);
    const scaled = eager ? t.make(scores, width) : t.hold(raw);
    t.drop(raw);
    const masked = t.make(scores, width);
    t.drop(scaled);
    const wide = eager && width === 2 ? t.make(scores, 4) : t.hold(masked);
    if (eager && width === 2) t.drop(masked);
    const softmax = t.make(scores, 4);
    t.drop(wide);
    if (!(eager && width === 2)) t.drop(masked);
    const weights = width === 2 ? t.make(scores, width) : t.hold(softmax);
    const mixed = t.make(n, width);
    const y = t.make(n, width);
    t.drop(mixed);
    const inner = q.node || k.node;
    const keep = { q: k.node && ownQ, k: q.node && ownK, v: inner && wideV, softmax: inner && softmax, weights: v.node && weights };
    const names = Object.keys(keep).filter((name) => keep[name]);
    y.node = t.record([q, k, v], names.map((name) => keep[name]), (g, kept) => {
      const saved = Object.fromEntries(names.map((name, i) => [name, kept[i]]));
      const turned = t.make(n, width);
      t.drop(g);
      const summed = (own, tensor, scaled) => {
        let made = tensor;
        if (scaled) (made = t.make(n, width)), t.drop(tensor);
        if (own.n === n) return made;
        const few = t.make(own.n, width);
        t.drop(made);
        return few;
      };
      const gradV = v.node && t.make(n, width);
      if (!inner) {
        t.drop(turned, saved.weights);
        return [null, null, summed(v, gradV, false)];
      }
      let grad = t.make(scores, width);
      t.drop(turned, saved.v, saved.weights);
      const cast = (to) => {
        const made = t.make(scores, to);
        t.drop(grad);
        grad = made;
      };
      if (width === 2) cast(4);
      const second = t.make(scores, 4);
      t.passing(rounded(scores * 4), "kernels' workspace");
      t.drop(grad, saved.softmax);
      grad = second;
      if (width === 2) cast(2);
      if (eager) cast(width);
      const gradK = k.node && t.make(n, width), gradQ = q.node && t.make(n, width);
      t.drop(grad, saved.q, saved.k);
      const outK = k.node && summed(k, gradK, !eager), outV = v.node && summed(v, gradV, false);
      return [q.node && summed(q, gradQ, !eager), outK, outV];
    });
    t.drop(scaledQ, wideK, wideV, scaledK, ownQ, ownK, softmax, weights, mask);
    return y;
  }
}
