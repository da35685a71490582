// node engine_check.js GOLDEN.json: what the engine makes of the values of tools/site/golden.py, as one JSON line.
import { readFileSync } from "node:fs";
import { inLayers, readAdapter, withRank } from "../../site/engine/adapters.js";
import { combine } from "../../site/engine/combine.js";
import { generate, probabilities, random, sample } from "../../site/engine/generate.js";
import { Cache, Llama } from "../../site/engine/llama.js";
import { readSafetensors } from "../../site/engine/safetensors.js";
import { Tokenizer } from "../../site/engine/tokenizer.js";
import { refused } from "./refused.js";

const assets = new URL("../../assets/", import.meta.url);
const json = (path) => JSON.parse(readFileSync(new URL(path, assets)));
const bytes = (path) => {
  const file = readFileSync(new URL(path, assets));
  return file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
};
const golden = JSON.parse(readFileSync(process.argv[2]));
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const found = {};

const tokenizer = new Tokenizer(json("tiny-llama/tokenizer.json"));
if (golden.strings) {
  found.otherIds = golden.strings.filter((text, i) => !same(tokenizer.encode(text), golden.ids[i]));
  found.otherTexts = golden.random_ids.filter((ids, i) => tokenizer.decode(ids) !== golden.texts[i]);
}

const model = new Llama(json("tiny-llama/config.json"), readSafetensors(bytes("tiny-llama/model.safetensors")));
const adapters = golden.tasks.map((task) => readAdapter(json(`adapters/${task}/adapter_config.json`), bytes(`adapters/${task}/adapter_model.safetensors`)));
const beside = { base: [] };
golden.tasks.forEach((task, i) => (beside[task] = [{ adapter: adapters[i], weight: 1 }]));
const { weights } = golden.mix;
beside.mix = adapters.map((adapter, i) => ({ adapter, weight: weights[i] }));
const logitsOf = (ids, wanted) => {
  const cache = new Cache(model.config);
  return ids.map((id) => model.step(id, cache, wanted)).at(-1);
};
const largest = (a, b) => a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0);

found.otherPrompts = golden.prompts.filter((prompt, i) => !same(tokenizer.chat(prompt), golden.prompt_ids[i]));
found.answers = {};
found.logits = {};
let tokens = 0;
const began = performance.now();
for (const [name, { answers, logits }] of Object.entries(golden.systems)) {
  found.answers[name] = answers.filter((answer, i) => {
    const cache = new Cache(model.config);
    const ids = [...generate(model, golden.prompt_ids[i], cache, beside[name], { maxNewTokens: golden.max_new_tokens })];
    tokens += cache.position;
    return same(ids.filter((id) => id !== undefined), answer);
  }).length;
  if (logits) found.logits[name] = Math.max(...logits.map((row, i) => largest(row, logitsOf(golden.prompt_ids[golden.logits_of[i]], beside[name]))));
}
found.tokensPerSecond = (1000 * tokens) / (performance.now() - began);

if (golden.mix.updates) {
  const { density, seed, svd_rank: svdRank, updates } = golden.mix;
  found.updates = {};
  for (const [how, layers] of Object.entries(updates)) {
    const mix = combine(adapters, weights, how, { density, seed, svdRank });
    found.updates[how] = Math.max(...Object.entries(layers).map(([layer, wanted]) => {
      const { lora_A, lora_B, r, scaling } = mix[layer], ins = lora_A.length / r;
      const delta = wanted.map((_, at) => {
        let sum = 0;
        for (let k = 0; k < r; k++) sum += lora_B[Math.floor(at / ins) * r + k] * lora_A[k * ins + (at % ins)];
        return scaling * sum;
      });
      return largest(delta, wanted) / Math.max(...wanted.map(Math.abs));
    }));
    if (how === "cat") {
      const one = [{ adapter: mix, weight: 1 }];
      found.catIsSum = Math.max(...golden.logits_of.map((row) => largest(logitsOf(golden.prompt_ids[row], one), logitsOf(golden.prompt_ids[row], beside.mix))));
    }
  }
}

// The kept tokens are the same, and their probabilities are equal up to rounding.
found.distributions = (golden.distributions ?? []).map(({ logits, temperature, top_p: topP, wanted }) => {
  const own = probabilities(Float32Array.from(logits), temperature, topP);
  return { kept: wanted.filter((p) => p > 0).length, otherKept: wanted.filter((p, i) => p > 0 !== own[i] > 0).length, error: largest([...own], wanted) };
});

// What Python has no values for.
const ids = golden.prompt_ids[0], style = adapters[golden.tasks.indexOf("style")];
const plain = logitsOf(ids, []), one = (adapter, weight = 1) => logitsOf(ids, [{ adapter, weight }]);
found.rankChanges = [0, 8, 16].map((r) => largest(one(withRank(style, r)), one(style)));
found.weightZero = largest(one(style, 0), plain);
found.layers = [[["layers.0"], ["q_proj", "k_proj"]], [["layers.9"]]].map((wanted) => Object.keys(inLayers(style, wanted)));
const draw = random(3), flat = Float32Array.of(2, 1, 0, -1), counts = [0, 0, 0, 0];
for (let n = 0; n < 20_000; n++) counts[sample(flat, { temperature: 0.7, topP: 0.9, draw })]++;
found.shares = counts.map((count) => count / 20_000);
found.probabilities = [...probabilities(flat, 0.7, 0.9)];
found.refused = [
  refused(() => readSafetensors(bytes("tiny-llama/model.safetensors").slice(0, 100_000), "a.safetensors")),
  refused(() => readSafetensors(new ArrayBuffer(3))),
  refused(() => readAdapter({ peft_type: "LORA", r: 4, lora_alpha: 8 }, bytes("adapters/style/adapter_model.safetensors"), "style")),
  refused(() => readAdapter({ peft_type: "LORA", use_dora: true }, new ArrayBuffer(0), "x")),
  refused(() => new Tokenizer({ ...json("tiny-llama/tokenizer.json"), normalizer: { type: "NFC" } })),
  refused(() => new Llama({ model_type: "gpt2" }, {})),
  refused(() => [...generate(model, Array(600).fill(5), new Cache(model.config), [])]),
];
console.log(JSON.stringify(found));
