/**
 * The model in a thread of its own, so that the page stays live while it computes. client.js sends what is wanted;
 * every message has the number of its job. Jobs take turns, token by token, and scores wait while an answer is written.
 */
import { inLayers, readAdapter, withRank } from "./adapters.js";
import { combine, truncated } from "./combine.js";
import { argmax, generate, probabilities, random } from "./generate.js";
import { Cache, Llama } from "./llama.js";
import { readSafetensors } from "./safetensors.js";
import { Tokenizer } from "./tokenizer.js";
import { Trainer } from "./train.js";

/** @type {Llama} */ let model;
/** @type {Tokenizer} */ let tokenizer;
const loading = new Map(), ordered = new Map(), made = new Map(), cancelled = new Set();
let answering = 0, training, space;

/** A file's bytes, or an error that says which file and why. */
async function bytes(url) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new Error(`${url} couldn't be fetched (${error.message}): is the site opened from a web server?`);
  }
  if (!response.ok) throw new Error(`${url} couldn't be fetched: the server says ${response.status}`);
  return response.arrayBuffer();
}
async function json(url) {
  const text = new TextDecoder().decode(await bytes(url));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${url} is no JSON (${error.message})`);
  }
}

async function load(base) {
  const [config, words, weights] = await Promise.all([json(`${base}config.json`), json(`${base}tokenizer.json`), bytes(`${base}model.safetensors`)]);
  tokenizer = new Tokenizer(words);
  model = new Llama(config, readSafetensors(weights, "model.safetensors"));
}

/** The adapter in a folder, fetched once. */
function adapterAt(url) {
  if (!loading.has(url)) {
    const both = Promise.all([json(`${url}adapter_config.json`), bytes(`${url}adapter_model.safetensors`)]);
    loading.set(url, both.then(([config, weights]) => readAdapter(config, weights, url)));
    loading.get(url).catch(() => loading.delete(url));
  }
  return loading.get(url);
}

/** The adapter with its largest directions first, so that its first terms are its best approximation. */
function sorted(url, adapter) {
  if (!ordered.has(url)) {
    ordered.set(url, Object.fromEntries(Object.entries(adapter).map(([name, f]) => [name, truncated(f, f.r)])));
  }
  return ordered.get(url);
}

/**
 * What a job wants beside the base: as one combined adapter, or, without `combine`, each adapter by itself. Made
 * adapters are kept, since TIES and the SVD take a while; the oldest goes first.
 */
async function beside(job, { adapters = [], combine: how, density, svdRank, seed, layers }) {
  const wanted = adapters.filter(({ weight = 1 }) => weight !== 0);
  const parts = await Promise.all(wanted.map(({ url }) => adapterAt(url)));
  if (!parts.length) return [];
  const key = JSON.stringify([wanted, how, density, svdRank, seed, layers]);
  if (made.has(key)) return made.get(key);
  await new Promise((resolve) => setTimeout(resolve)); // a fader that still moves has cancelled this job by now
  if (cancelled.has(job)) throw new Error("cancelled");
  const weights = wanted.map(({ weight = 1 }) => weight);
  const cut = parts.map((part, i) => {
    const { rank, url } = wanted[i], ranked = rank === undefined ? part : withRank(sorted(url, part), rank);
    return layers ? inLayers(ranked, layers) : ranked;
  });
  const result = how
    ? [{ adapter: combine(cut, weights, how, { density, svdRank, seed }), weight: 1 }]
    : cut.map((adapter, i) => ({ adapter, weight: weights[i] }));
  made.set(key, result);
  if (made.size > 8) made.delete(made.keys().next().value);
  return result;
}

/** Lets waiting messages in. A timer would wait 4 ms each time; a message to oneself doesn't. */
const { port1, port2 } = new MessageChannel();
const turns = [];
port2.onmessage = () => turns.shift()();
const turn = () => new Promise((resolve) => {
  turns.push(resolve);
  port1.postMessage(0);
});

/** Waits for its turn; `low`: until no answer is being written. Throws when the job was cancelled. */
async function wait(job, low = false) {
  do {
    await turn();
    if (cancelled.has(job)) throw new Error("cancelled");
  } while (low && answering);
}

const jobs = {
  /** The answer to a prompt; its text so far is sent with each token. */
  async answer(job, { prompt, ...options }) {
    answering++;
    try {
      const adapters = await beside(job, options);
      const draw = options.seed === undefined ? Math.random : random(options.seed);
      const stream = tokenizer.stream(), cache = new Cache(model.config);
      let text = "";
      for (const token of generate(model, tokenizer.chat(prompt), cache, adapters, { ...options, draw })) {
        if (token !== undefined) postMessage({ job, text: (text += stream.push(token)) });
        await wait(job);
      }
      return text + stream.end();
    } finally {
      answering--;
    }
  },

  /** The logits of the token that comes behind a prompt and what was drawn of the answer, and the text of that. */
  async next(job, { prompt, drawn, ...options }) {
    answering++;
    try {
      const adapters = await beside(job, options);
      const ids = [...tokenizer.chat(prompt), ...drawn], cache = new Cache(model.config);
      let logits;
      for (const [i, id] of ids.entries()) {
        logits = model.step(id, cache, adapters, i === ids.length - 1);
        await wait(job);
      }
      return { logits, text: tokenizer.decode(drawn) };
    } finally {
      answering--;
    }
  },

  /** The text of every token, by its id; of a special one its name. */
  vocabulary() {
    return Array.from({ length: model.config.vocab_size }, (_, id) => (tokenizer.specialIds.has(id) ? tokenizer.tokens.get(id) : tokenizer.decode([id])));
  },

  /**
   * How likely the right answers are, and how many the model would give itself: it reads each, and an answer is right
   * where every next token, the end-of-turn token too, is the likeliest.
   */
  async score(job, { examples, ...options }) {
    const adapters = await beside(job, options);
    let right = 0, total = 0, tokens = 0, sum = 0;
    for (const { prompt, answer } of examples) {
      const asked = tokenizer.chat(prompt), wanted = [...tokenizer.encode(answer), model.config.eos_token_id];
      const cache = new Cache(model.config), read = [...asked, ...wanted];
      let greedy = true;
      for (let i = 0; i + 1 < read.length; i++) {
        const logits = model.step(read[i], cache, adapters, i + 1 >= asked.length);
        if (logits) {
          sum += Math.log(probabilities(logits, 1)[read[i + 1]] + 1e-30);
          greedy &&= argmax(logits) === read[i + 1];
        }
        await wait(job, true);
      }
      right += Number(greedy);
      tokens += wanted.length;
      postMessage({ job, text: { right, total: ++total, logProb: sum / tokens } });
    }
    return { right, total, logProb: sum / tokens };
  },

  /**
   * Trains an adapter, in the background; answers and scores find it under `url`, as it is then. One training at a time:
   * another ends it. A cancelled one leaves the adapter of its last step.
   */
  async train(job, { url, examples, batches, steps, ...options }) {
    if (training) cancelled.add(training);
    training = job;
    try {
      const trainer = new Trainer(model, { steps, ...options }, space);
      const rows = examples.map(({ prompt, answer }) => tokenizer.row(prompt, answer)), adapter = trainer.adapter();
      ({ space } = trainer);
      loading.set(url, Promise.resolve(adapter));
      for (let step = 0; step < steps; step++) {
        const work = trainer.backward(batches[step].map((row) => rows[row]));
        let part;
        while (!(part = work.next()).done) await wait(job, true);
        trainer.update();
        Object.assign(adapter, trainer.adapter());
        postMessage({ job, text: { step: step + 1, loss: part.value } });
      }
      return { steps };
    } finally {
      if (training === job) training = undefined;
    }
  },
};

let ready;
self.onmessage = async ({ data: { job, kind, options } }) => {
  if (kind === "cancel") {
    cancelled.add(job);
    return;
  }
  try {
    if (kind === "load") ready = load(options.base);
    await ready;
    const value = kind === "load" ? model.config : cancelled.has(job) ? null : await jobs[kind](job, options);
    postMessage({ job, done: true, value });
  } catch (error) {
    postMessage({ job, done: true, error: error.message });
  } finally {
    cancelled.delete(job);
  }
};
