// node train_check.js CASES.json: the engine's gradients and losses beside Python's, and its products, as one JSON line.
import { readFileSync } from "node:fs";
import { Llama } from "../../site/engine/llama.js";
import { Space } from "../../site/engine/matmul.js";
import { random } from "../../site/engine/generate.js";
import { readSafetensors } from "../../site/engine/safetensors.js";
import { Tokenizer } from "../../site/engine/tokenizer.js";
import { Trainer, rateFactor } from "../../site/engine/train.js";
import { refused } from "./refused.js";

const assets = new URL("../../assets/tiny-llama/", import.meta.url);
const json = (file) => JSON.parse(readFileSync(file));
const weights = readFileSync(new URL("model.safetensors", assets));
const tokenizer = new Tokenizer(json(new URL("tokenizer.json", assets)));
const model = new Llama(json(new URL("config.json", assets)), readSafetensors(weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.byteLength)));
const cases = json(process.argv[2]);
const norm = (values) => Math.hypot(...values);

/** What a generator returns, all its yields run through. */
function through(generator) {
  for (;;) {
    const { done, value } = generator.next();
    if (done) return value;
  }
}

const found = {};
found.gradients = cases.gradients.map(({ r, alpha, rows, adapter, loss, gradients }) => {
  const trainer = new Trainer(model, { r, alpha, lr: 1, steps: 1 });
  trainer.begin(Object.fromEntries(Object.entries(adapter).map(([name, { lora_A, lora_B }]) => [name, { lora_A, lora_B, r, scaling: alpha / r }])));
  const own = through(trainer.backward(rows)), mine = trainer.gradients();
  const errors = Object.entries(gradients).flatMap(([name, parts]) => Object.entries(parts).map(([part, wanted]) => {
    return [`${name}.${part}`, norm(wanted.map((g, i) => g - mine[name][part][i])) / norm(wanted)];
  }));
  return { loss: own / loss - 1, errors: Object.fromEntries(errors) };
});

const task = json(new URL("../../site/figures/train/task.json", import.meta.url));
const rows = task.rows.map(([text, answer]) => tokenizer.row(task.ask + text, answer));
found.rows = cases.rows.filter(({ prompt, answer }, i) => JSON.stringify([prompt, answer]) !== JSON.stringify([rows[i].prompt, rows[i].answer])).length;
found.runs = cases.runs.map(({ r, lr, steps }) => {
  const trainer = new Trainer(model, { r, alpha: 2 * r, lr, steps }), began = performance.now();
  const losses = task.batches.slice(0, steps).map((batch) => {
    const loss = through(trainer.backward(batch.map((row) => rows[row])));
    trainer.update();
    return loss;
  });
  return { losses, milliseconds: (performance.now() - began) / steps };
});

// The product alone, beside plain sums in float64: the largest error as a share of the sum of |a b|.
const space = new Space(1e6), draw = random(5);
found.products = [[22, 192, 512], [22, 512, 192], [1, 1, 4], [5, 7, 20], [4, 3, 8], [7, 33, 16]].flatMap(([n, k, m]) => [false, true].map((turned) => {
  space.free(0);
  const [A, B, C] = [n * k, k * m, n * m].map((count) => space.floats(count).map(() => 2 * draw() - 1)).map((values) => {
    const own = space.floats(values.length);
    own.set(values);
    return own;
  });
  const before = C.slice();
  space.multiply(A, B, C, n, k, m, turned);
  return Math.max(...C.map((c, at) => {
    const i = Math.floor(at / m), j = at % m;
    let sum = before[at], size = Math.abs(sum);
    for (let p = 0; p < k; p++) {
      const term = (turned ? A[p * n + i] : A[i * k + p]) * B[p * m + j];
      sum += term;
      size += Math.abs(term);
    }
    return Math.abs(c - sum) / size;
  }));
}));
found.rates = [0, 4, 9, 10, 60].map((step) => rateFactor(step, 100));
found.refused = [
  refused(() => through(new Trainer(model, { r: 1, alpha: 2, lr: 1, steps: 1 }).backward([{ prompt: Array(600).fill(5), answer: [1] }]))),
  refused(() => {
    const trainer = new Trainer(model, { r: 1, alpha: 2, lr: 1e30, steps: 9 });
    for (;;) {
      through(trainer.backward([rows[0]]));
      trainer.update();
    }
  }),
];
console.log(JSON.stringify(found));
