/**
 * Train it here: LoRA on the sentiment task in the reader's tab, step by step as utils/train/loop.py takes them; the
 * loss as it falls, and base and adapter answering side by side.
 */
import { any, choice, fresh, h, json, later, latest, model, promptField, spoken, styles, urlState } from "../common/dom.js";

const RANKS = [1, 2, 4, 8, 16], RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2];
/** The loss axis is logarithmic, between these powers of ten. */
const HIGH = 1, LOW = -4;
const EVERY = 10; // steps between two answers of the adapter on the way

const short = (loss) => (loss >= 0.01 ? loss.toPrecision(3) : loss.toFixed(4));
const nearest = (choices, value) => choices.reduce((best, own) => (Math.abs(own - value) < Math.abs(best - value) ? own : best));

/** @param {HTMLElement} root @param {{base?: string}} [options] `base`: the URL of the model's folder */
export async function mount(root, options = {}) {
  const [task] = await Promise.all([json("task.json", import.meta.url), styles(import.meta.url)]), { recipe, held_out: heldOut, coin } = task;
  const examples = task.rows.map(([text, answer]) => ({ prompt: task.ask + text, answer }));
  const most = task.batches.length;
  const client = model(options);
  const url = urlState("train", { rank: recipe.r, lr: recipe.lr, steps: most, prompt: heldOut[0].prompt });
  let state = url.read();
  /** @type {{url: string, losses: number[], steps: number, began: number, about: string}[]} the last is the one that is seen */
  const runs = [];
  let running, base;

  const live = spoken();
  const rank = choice("Rank r", RANKS.map((r) => ({ value: String(r), text: String(r) })), String(state.rank), (value) => change({ rank: Number(value) }));
  const rate = choice("Learning rate", RATES.map((lr) => ({ value: String(lr), text: lr })), String(state.lr), (value) => change({ lr: Number(value) }));
  const steps = h("input", { type: "range", id: fresh("steps"), name: "steps", min: EVERY, max: most, step: EVERY, oninput: () => change({ steps: Number(steps.value) }) });
  const stepsText = h("output", { for: steps.id });
  const button = h("button", { type: "button", class: "train-start", onclick: () => (running ? stop() : start()) });
  const trained = h("p", { class: "figure-muted" }), status = h("p", { class: "train-status figure-number" });
  const chart = h("div", { role: "img", class: "figure-drawing" });
  const another = h("button", { type: "button", onclick: () => change({ prompt: any(heldOut).prompt }) }, "another held-out prompt");
  const prompt = promptField((text) => change({ prompt: text }), another);
  const sides = {
    base: side("The base answers", heldOut.length),
    adapter: side("Base and your adapter", heldOut.length),
  };
  const failed = (error) => status.replaceChildren(h("span", { class: "figure-error" }, error.message));

  const body = h("div", { class: "train" },
    h("div", { class: "train-left" },
      h("div", { class: "train-controls" }, rank.element, rate.element,
        h("div", {}, h("label", { class: "figure-label", for: steps.id }, "Steps"), h("div", { class: "figure-sliders train-slider" }, steps, stepsText)),
        trained),
      h("div", { class: "train-run" }, button, status)),
    h("div", { class: "train-loss" }, h("span", { class: "figure-label" }, "Loss of each step, in nats per token of the answer (log scale)"), chart,
      h("p", { class: "figure-muted" }, "On the dashed line the model knows the two answers and tosses a coin between them. Below it, it reads the sentence. Earlier runs stay, in grey.")),
    h("div", { class: "train-asked" },
      h("div", {}, ...prompt.parts),
      h("div", { class: "train-sides" }, sides.base.element, sides.adapter.element)),
    live.element);
  root.replaceChildren(h("div", { class: "figure-body" }, body));

  const seen = () => runs.at(-1);
  const adapters = () => (seen()?.losses.length ? [{ url: seen().url }] : undefined);

  /** All runs' losses, the last one in colour. Text has the same size on every screen: the drawing is as wide as its place. */
  function draw() {
    const width = Math.max(240, chart.clientWidth), height = 190, left = 54, right = 8, top = 8;
    const longest = Math.max(...(runs.length ? runs.map((own) => own.steps) : [most]));
    const x = (step) => left + ((step - 1) * (width - left - right)) / (longest - 1);
    const y = (loss) => top + ((HIGH - Math.min(HIGH, Math.max(LOW, Math.log10(loss)))) * (height - top)) / (HIGH - LOW);
    const line = (own) => own.losses.map((loss, i) => `${x(i + 1).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
    const decades = Array.from({ length: HIGH - LOW + 1 }, (_, i) => HIGH - i);
    const grid = decades.map((power) => `<line class="train-grid" x1="${left}" x2="${width - right}" y1="${y(10 ** power)}" y2="${y(10 ** power)}"/><text x="${left - 5}" y="${y(10 ** power) + 4}" text-anchor="end">${10 ** power < 1 ? (10 ** power).toFixed(-power) : 10 ** power}</text>`);
    const apart = longest >= 100 ? 50 : longest >= 40 ? 20 : 10;
    const ticks = [1, ...Array.from({ length: Math.floor(longest / apart) }, (_, i) => (i + 1) * apart)].map((step) => `<text x="${x(step)}" y="${height + 15}" text-anchor="${step === 1 ? "start" : step === longest ? "end" : "middle"}">${step === 1 ? "step 1" : step}</text>`);
    const curves = runs.map((own, i) => `<polyline class="${i === runs.length - 1 ? "train-now" : "train-before"}" points="${line(own)}"/>`);
    const dot = adapters() ? `<circle class="train-dot" cx="${x(seen().losses.length)}" cy="${y(seen().losses.at(-1))}" r="4.5"/>` : "";
    const toss = `<line class="train-coin" x1="${left}" x2="${width - right}" y1="${y(coin)}" y2="${y(coin)}"/><text x="${width - right}" y="${y(coin) - 5}" text-anchor="end">coin toss: ${coin}</text>`;
    chart.innerHTML = `<svg viewBox="0 0 ${width} ${height + 20}" aria-hidden="true">${grid.join("")}${toss}${curves.join("")}${dot}${ticks.join("")}</svg>`;
    const { losses = [] } = seen() ?? {};
    chart.setAttribute("aria-label", losses.length ? `The loss falls from ${short(losses[0])} at step 1 to ${short(losses.at(-1))} at step ${losses.length}.` : "No step has been taken yet.");
    body.dataset.steps = String(losses.length);
  }

  const rewrite = (who, wanted) => latest(async (signal) => {
    const { answer } = sides[who], adapter = wanted();
    answer.dataset.busy = "yes";
    const text = await client.answer(state.prompt, { adapters: adapter, maxNewTokens: 32, signal });
    answer.textContent = text.trim() || "(nothing: the end-of-turn token came first)";
    answer.dataset.busy = "no";
  }, failed);
  const rewriteBase = rewrite("base", () => undefined), rewriteAdapter = rewrite("adapter", adapters);

  /** Exact match of the base, once, and of the adapter as it is. */
  const score = latest(async (signal) => {
    sides.adapter.show(null);
    base ??= await client.score(heldOut, { signal, onToken: sides.base.show });
    sides.base.show(base);
    if (!adapters()) return;
    const done = await client.score(heldOut, { adapters: adapters(), signal, onToken: sides.adapter.show });
    sides.adapter.show(done);
    body.dataset.right = String(done.right);
    tell();
  }, failed);

  function tell() {
    const { losses, steps: all, stopped } = seen();
    const state = `${running ? "Step" : stopped ? "Stopped at step" : "Trained to step"} ${losses.length} of ${all}: loss ${short(losses.at(-1))}.`;
    live.say(`${state} The adapter answers: ${sides.adapter.answer.textContent}.${body.dataset.right ? ` Exact match: the base ${base.right}, the adapter ${body.dataset.right} of ${heldOut.length}.` : ""}`);
  }

  /** What stands beside the button. */
  function report() {
    const { losses, steps: all, seconds, stopped, about } = seen(), done = losses.length;
    if (!done) status.textContent = "The first step is being computed …";
    else status.textContent = `${running ? "" : stopped ? "Stopped: " : "Done: "}step ${done} of ${all}, loss ${short(losses.at(-1))}, ${seconds.toFixed(0)}\u00a0s (${about})`;
  }

  async function start() {
    const { rank: r, lr, steps: all } = state, controller = new AbortController();
    const own = { url: `../trained/${runs.length + 1}`, losses: [], steps: all, seconds: 0, stopped: false, about: `r = ${r}, learning rate ${lr}` };
    running = controller;
    runs.push(own);
    delete body.dataset.right;
    show([]);
    score(); // what an earlier run's adapter is still asked is not wanted any more
    sides.adapter.answer.textContent = "";
    report();
    draw();
    live.say(`Training begins: rank ${r}, learning rate ${lr}, ${all} steps.`);
    const began = performance.now();
    try {
      await client.train(examples, {
        url: own.url, batches: task.batches, r, alpha: 2 * r, lr, steps: all, signal: controller.signal,
        onToken({ step, loss }) {
          own.losses.push(loss);
          own.seconds = (performance.now() - began) / 1000;
          report();
          draw();
          if (step % EVERY === 0 || step === 1) rewriteAdapter();
          if (step % 30 === 0 && step < all) tell();
        },
      });
    } catch (error) {
      own.stopped = true;
      if (!controller.signal.aborted) {
        running = undefined;
        show([]);
        return failed(error);
      }
    }
    running = undefined;
    show([]);
    if (own.losses.length) {
      report();
      rewriteAdapter();
      score();
    } else {
      runs.pop();
      status.textContent = "Stopped before the first step.";
      draw();
    }
  }
  const stop = () => running?.abort(new Error("stopped"));

  function show(changed) {
    prompt.set(state.prompt);
    rank.set(String(state.rank));
    rate.set(String(state.lr));
    steps.value = String(state.steps);
    stepsText.textContent = String(state.steps);
    for (const control of [rank.element, rate.element, steps]) control.disabled = Boolean(running);
    button.textContent = running ? "Stop" : runs.length ? "Train again" : "Train";
    body.dataset.running = running ? "yes" : "no";
    const size = parameters(client.config, state.rank);
    trained.textContent = `${size.toLocaleString("en-US")} numbers are trained, in lora_A and lora_B of all 28 linear layers; the base stays frozen. alpha = 2r, ${recipe.batch_size} sentences a step.`;
    if (changed.includes("prompt")) {
      rewriteBase();
      if (adapters()) rewriteAdapter();
    }
  }
  function change(changes) {
    state = { ...state, ...changes };
    url.write(state);
    if ("prompt" in changes) askLater();
    show([]);
  }
  const askLater = later(() => show(["prompt"]), 150);
  const sane = () => {
    state = url.read();
    state.rank = nearest(RANKS, state.rank);
    state.lr = nearest(RATES, state.lr);
    state.steps = Math.min(most, Math.max(EVERY, EVERY * Math.round(state.steps / EVERY)));
    show(["prompt"]);
  };
  url.follow(sane);
  new ResizeObserver(draw).observe(chart);
  sides.adapter.answer.textContent = "";
  status.textContent = "Loading the model (3.6 MB) …";
  button.disabled = true;
  try {
    client.config = await client.ready;
  } catch (error) {
    return failed(error);
  }
  button.disabled = false;
  status.textContent = "";
  sane();
  score();
}

/** How many numbers LoRA of rank r trains beside all linear layers. */
function parameters({ hidden_size: size, intermediate_size: wide, num_attention_heads: heads, num_key_value_heads: shared, head_dim: d, num_hidden_layers: layers }, r) {
  const outs = [[size, heads * d], [size, shared * d], [size, shared * d], [heads * d, size], [size, wide], [size, wide], [wide, size]];
  return layers * r * outs.reduce((sum, [a, b]) => sum + a + b, 0);
}

/** One of the two that answer: its answer, and its exact match as a bar. */
function side(text, count) {
  const answer = h("p", { class: "figure-answer train-answer" }), bar = h("div", { style: "width: 0" }), right = h("p", { class: "figure-number figure-muted" });
  const element = h("div", { class: "train-side" }, h("span", { class: "figure-label" }, text), answer, h("div", { class: "figure-meter", "aria-hidden": "true" }, bar), right);
  return {
    element,
    answer,
    /** @param {{right: number, total: number} | null} part */
    show(part) {
      bar.style.width = `${(100 * (part?.right ?? 0)) / count}%`;
      right.textContent = part ? `exact match: ${part.right} of ${part.total} held-out prompts` : "exact match: measured after the last step";
    },
  };
}
