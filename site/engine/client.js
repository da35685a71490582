/**
 * What a page uses: the model in a Web Worker, asked by promises.
 *
 *     const client = new Client({ base: "../assets/tiny-llama/" });
 *     await client.ready;
 *     const text = await client.answer("Say it like a pirate: Zoe went home.", {
 *       adapters: [{ name: "style", weight: 1 }], onToken: (text) => console.log(text),
 *     });
 *
 * @typedef {{name?: string, url?: string, weight?: number, rank?: number}} Wanted
 *   `name`: a folder of `adapters/` beside the model's, or `url`: any folder with PEFT's two files; `rank`: its best approximation of that rank
 * @typedef {object} Options
 * @property {Wanted[]} [adapters] what stands beside the base
 * @property {import("./combine.js").How} [combine] makes one adapter of them first; without it each is added by itself
 * @property {number} [density] of TIES and DARE @property {number} [svdRank]
 * @property {string[][]} [layers] see `inLayers` in adapters.js
 * @property {number} [maxNewTokens] 40 @property {number} [temperature] 0 is greedy @property {number} [topP]
 * @property {number} [seed] makes what is drawn repeatable @property {AbortSignal} [signal] stops the job
 * @property {(value: any) => void} [onToken] gets what is there so far
 */

export class Client {
  /** @param {{base: string}} options the URL of the folder with config.json, tokenizer.json and model.safetensors */
  constructor({ base }) {
    this.base = new URL(base.endsWith("/") ? base : `${base}/`, document.baseURI).href;
    this.waiting = new Map();
    this.last = 0;
    /** @type {Error | undefined} why the worker will never answer */
    this.broken = undefined;
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => {
      const error = this.broken = new Error(`the model's worker couldn't run: ${event.message ?? "is the site opened from a web server?"}`);
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
    /** @type {Promise<any>} the model's config.json, once everything is there */
    this.ready = this.ask("load", { base: this.base });
    this.ready.catch(() => {}); // whoever waits for it is told
  }

  receive({ job, done, value, error, text }) {
    const own = this.waiting.get(job);
    if (!own) return;
    if (!done) return own.onToken?.(text);
    this.waiting.delete(job);
    if (error) own.reject(new Error(error));
    else own.resolve(value);
  }

  /** Sends a job to the worker. @param {string} kind @param {any} options @returns {Promise<any>} */
  ask(kind, { signal, onToken, ...options }) {
    const job = ++this.last;
    const adapters = options.adapters?.map(({ name, url, ...rest }) => ({ url: this.folder(url ?? `../adapters/${name}`), ...rest }));
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      if (this.broken) return reject(this.broken);
      const abort = () => {
        this.waiting.delete(job);
        this.worker.postMessage({ job, kind: "cancel" });
        reject(signal.reason);
      };
      const end = (settle) => (value) => {
        signal?.removeEventListener("abort", abort);
        settle(value);
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.waiting.set(job, { resolve: end(resolve), reject: end(reject), onToken });
      this.worker.postMessage({ job, kind, options: adapters ? { ...options, adapters } : options });
    });
  }

  /** A folder's URL; a relative one begins at `base`. @param {string} url */
  folder(url) {
    return new URL(url.endsWith("/") ? url : `${url}/`, this.base).href;
  }

  /** The answer to a user's words. @param {string} prompt @param {Options} [options] @returns {Promise<string>} */
  answer(prompt, options = {}) {
    return this.ask("answer", { ...options, prompt });
  }

  /**
   * The logits of the token that comes behind a prompt and the ids `drawn` of its answer so far, and the text of those.
   *
   * @param {string} prompt @param {number[]} drawn @param {Options} [options]
   * @returns {Promise<{logits: Float32Array, text: string}>}
   */
  next(prompt, drawn, options = {}) {
    return this.ask("next", { ...options, prompt, drawn });
  }

  /** The text of every token, by its id. @returns {Promise<string[]>} */
  vocabulary() {
    return this.ask("vocabulary", {});
  }

  /**
   * How a mix does on a task, in the background: of how many prompts the greedy answer is right (`right` of `total`), and
   * the log-probability of the right answers' tokens, the mean (`logProb`). `onToken` gets it so far.
   *
   * @param {{prompt: string, answer: string}[]} examples @param {Options} [options]
   * @returns {Promise<{right: number, total: number, logProb: number}>}
   */
  score(examples, options = {}) {
    return this.ask("score", { ...options, examples });
  }

  /**
   * Trains LoRA on all linear layers, in the background, as utils/train/loop.py does; `batches` has the numbers of each
   * step's examples. `onToken` gets each step's number and loss. From the first step on `{ url }` among an answer's
   * adapters is the adapter, as far as it is; `signal` stops the training and leaves it.
   *
   * @param {{prompt: string, answer: string}[]} examples
   * @param {{url: string, batches: number[][], r: number, alpha: number, lr: number, steps: number, seed?: number,
   *   signal?: AbortSignal, onToken?: (value: {step: number, loss: number}) => void}} options
   * @returns {Promise<{steps: number}>}
   */
  train(examples, { url, ...options }) {
    return this.ask("train", { ...options, examples, url: this.folder(url) });
  }
}
